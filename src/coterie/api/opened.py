"""Opens a composition's experts: models and tokenizers. Of a folder, what cannot be opened is left out.

A file that names its experts is taken at its word: there, one that cannot be opened is an error. Knows nothing about
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.api.assemble import activated, is_synthetic, open_models
from coterie.api.sampling import CHECKPOINT, GREEDY, with_defaults
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


def open_all(composition: Composition, device: str, activations: str = INT16, sampling: str = CHECKPOINT) -> Opened:
    """Open every expert, but for those of a folder that cannot be. Raises as `open_models` and `open_texts` do.

    Of a folder only where none is left. `sampling`: whose defaults (see Options); made-up tokens are drawn by none.
    """
    whose = GREEDY if is_synthetic(device) else sampling
    if not composition.is_folder:
        models = _sampled(open_models(composition, device, activations), whose)
        return Opened(composition, models, open_texts(models))
    texts: dict[str, Text] = {}
    composition, found = open_folder(composition, lambda model: texts.update(open_texts({model.name: model})))
    return Opened(composition, _sampled(activated(composition, found, activations), whose), texts)


def _sampled(models: Mapping[str, Model], whose: str) -> dict[str, Model]:
    return {name: with_defaults(model, whose) for name, model in models.items()}
