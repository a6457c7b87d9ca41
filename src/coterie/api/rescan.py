"""Looks into a folder of experts again, while it is served: what is new there, and whose files were replaced.

What has gone stays as it is: an expert that is in memory needs its files no more. Knows nothing about requests.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coterie.api.assemble import Options
from coterie.api.sampling import with_defaults
from coterie.api.texts import Text, files_of, open_texts
from coterie.checkpoint.layout import FileIdentity
from coterie.composition.composition import Composition, load_composition
from coterie.composition.expert import Expert
from coterie.core.errors import CapacityError, ConflictError, CoterieError, UsageError
from coterie.engine.assembly import Parts
from coterie.engine.experts import open_expert
from coterie.engine.more import serve_more
from coterie.models.model import Model, with_activations


@dataclass(frozen=True, slots=True)
class Rescan:
    """What another look changed: experts that are new, and those whose weights, or what lies beside them, are others.

    `kept`: those that should have and stay as they are, with the reason. `left_out`: what is not served, likewise.
    """

    added: tuple[str, ...]
    renewed: tuple[str, ...]
    kept: Mapping[str, CoterieError]
    left_out: Mapping[str, CoterieError]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        kept, left_out = ({name: str(why) for name, why in found.items()} for found in (self.kept, self.left_out))
        return {"added": list(self.added), "renewed": list(self.renewed), "kept": kept, "left_out": left_out}


def rescan(
    composition: Composition, parts: Parts, models: dict[str, Model], texts: dict[str, Text], options: Options
) -> tuple[Composition, Rescan]:
    """Serve what is new in a composition's folder; `models` and `texts` grow. Not while the engine is in a step.

    Raises UsageError for a composition that is a file, and where the folder has become one, NotFoundError and
    CompositionError where there is no folder any more, or no expert in it. Then all is as it was.
    """
    found = load_composition(composition.root) if composition.is_folder else composition
    if not found.is_folder:
        fact = "is no folder of experts, and a file is read once"
        raise UsageError(composition.name, fact, "serve it again, or serve a folder")
    before = {expert.name: expert for expert in composition.experts}
    changed: list[str] = []
    kept: dict[str, CoterieError] = {}
    left_out: dict[str, CoterieError] = {name: why for name, why in found.left_out.items() if name not in before}
    opened: dict[Path, Model] = {}
    for expert in found.experts:
        if before.get(expert.name) == expert and not _changed(models[expert.name], texts[expert.name]):
            continue
        try:
            _take(expert, parts, models, texts, options, opened)
        except (UsageError, CapacityError, ConflictError) as error:
            (kept if expert.name in before else left_out)[expert.name] = error
        else:
            changed.append(expert.name)
    now = before | {expert.name: expert for expert in found.experts if expert.name in changed}
    composition = replace(composition, experts=tuple(now.values()), left_out=left_out)
    added, renewed = ([name for name in changed if (name in before) == old] for old in (False, True))
    return composition, Rescan(tuple(added), tuple(renewed), kept, left_out)


def _take(
    expert: Expert,
    parts: Parts,
    models: dict[str, Model],
    texts: dict[str, Text],
    options: Options,
    opened: dict[Path, Model],
) -> None:
    assert expert.checkpoint is not None
    model = with_activations(open_expert(expert, expert.checkpoint, opened), options.activations)
    model = with_defaults(model, options.sampling)
    text = open_texts({expert.name: model})
    if expert.name not in models or _runs(model) != _runs(models[expert.name]):
        serve_more(parts, models, expert.name, model, options)
    models[expert.name] = model
    texts |= text


def _runs(model: Model) -> object:
    """What the engine and the cache know of a model: as long as it is the same, what they have of it stays good."""
    base = None if model.base is None else model.base.layout
    return model.key, model.layout, base, model.max_context, model.config.vocab_size


def _changed(model: Model, text: Text) -> bool:
    """Whether a file of its weights, or one beside them, is another one than when it was opened, or none."""
    return _replaced(model) or text.files != files_of(model)


def _replaced(model: Model) -> bool:
    """Whether a file of its weights is another one than when it was opened, or none."""
    files = {placed.source.path: placed.source.identity for placed in model.layout.ranges}
    try:
        return any(FileIdentity.of(os.stat(path)) != identity for path, identity in files.items())
    except OSError:
        return True
