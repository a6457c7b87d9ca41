"""Opens a composition's experts: models and tokenizers. Of a folder, what cannot be opened is left out.

A file that names its experts is taken at its word: there, one that cannot be opened is an error. Knows nothing about
memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.api.assemble import activated, open_models
from coterie.api.texts import Text, open_texts
from coterie.composition.composition import Composition
from coterie.engine.experts import open_folder
from coterie.graph.ops import INT16
from coterie.models.model import Model


@dataclass(frozen=True, slots=True)
class Opened:
    """Models and tokenizers by the experts' names. `composition`: the one asked for, without what is left out."""

    composition: Composition
    models: dict[str, Model]
    texts: dict[str, Text]


def open_all(composition: Composition, device: str, activations: str = INT16) -> Opened:
    """Open every expert, but for those of a folder that cannot be. Raises as `open_models` and `open_texts` do.

    Of a folder only where none is left.
    """
    if not composition.is_folder:
        models = open_models(composition, device, activations)
        return Opened(composition, models, open_texts(models))
    texts: dict[str, Text] = {}
    composition, found = open_folder(composition, lambda model: texts.update(open_texts({model.name: model})))
    return Opened(composition, activated(composition, found, activations), texts)
