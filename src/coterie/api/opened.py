"""Opens a composition's experts: models and tokenizers. Of a folder, what cannot be opened is left out.

A file that names its experts is taken at its word: there, one that cannot be opened is an error. Knows nothing about
memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from coterie.api.assemble import activated, open_models
from coterie.api.texts import Text, open_texts
from coterie.composition.composition import Composition
from coterie.composition.folder import none_left
from coterie.core.errors import UsageError
from coterie.engine.experts import open_expert
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
    found, texts, opened = dict[str, Model](), dict[str, Text](), dict[Path, Model]()
    left_out = dict(composition.left_out)
    for expert in composition.experts:
        try:
            assert expert.checkpoint is not None
            model = open_expert(expert, expert.checkpoint, opened)
            texts |= open_texts({expert.name: model})
            found[expert.name] = model
        except UsageError as error:
            left_out[expert.name] = error
    if not found:
        raise none_left(composition.root, left_out)
    kept = tuple(expert for expert in composition.experts if expert.name in found)
    composition = replace(composition, experts=kept, left_out=left_out)
    return Opened(composition, activated(composition, found, activations), texts)
