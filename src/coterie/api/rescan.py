"""Looks into a folder of experts again, while it is served: what is new there, and whose files were replaced.

What has gone stays as it is: an expert that is in memory needs its files no more. Knows nothing about requests.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coterie.api.assemble import Options, rounded_for
from coterie.api.opened import with_draft
from coterie.api.sampling import with_defaults
from coterie.api.texts import Text, files_of, open_texts
from coterie.checkpoint.layout import FileIdentity
from coterie.composition.composition import Composition, load_composition
from coterie.composition.expert import Expert
from coterie.core.errors import CapacityError, ConflictError, CoterieError, UsageError
from coterie.engine.additions import serve_more
from coterie.engine.assembly import Parts
from coterie.engine.experts import open_expert
from coterie.models.model import Model, with_kv_type


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


@dataclass(frozen=True, slots=True)
class FolderScan:
    """What another look found: the folder as it is, and what is new or replaced there, opened, or why it is not.

    `was`: the models that were served under these names, None where there was none.
    """

    found: Composition
    opened: Mapping[str, tuple[Model, Text]]
    failed: Mapping[str, UsageError]
    was: Mapping[str, Model | None]


def look_again(
    composition: Composition, models: Mapping[str, Model], texts: Mapping[str, Text], options: Options
) -> FolderScan:
    """Look into a composition's folder, and open what is new there. In any thread: to open hundreds takes seconds.

    Raises UsageError for a composition that is a file, and where the folder has become one, NotFoundError and
    CompositionError where there is no folder any more, or no expert in it.
    """
    found = load_composition(composition.root) if composition.is_folder else composition
    if not found.is_folder:
        fact = "is no folder of experts, and a file is read once"
        raise UsageError(composition.name, fact, "serve it again, or serve a folder")
    before, models = {expert.name: expert for expert in composition.experts}, dict(models)
    bases: dict[Path, Model] = {}
    opened: dict[str, tuple[Model, Text]] = {}
    failed: dict[str, UsageError] = {}
    for expert in found.experts:
        if before.get(expert.name) == expert and not _changed(models[expert.name], texts[expert.name]):
            continue
        try:
            model = reopen(expert, options, bases)
            text = open_texts({expert.name: model})[expert.name]
            now = {**models, expert.name: model}, {**texts, expert.name: text}
            opened[expert.name] = with_draft(expert.name, *now, options.draft if options.draft in models else ""), text
        except UsageError as error:
            failed[expert.name] = error
    return FolderScan(found, opened, failed, {name: models.get(name) for name in (*opened, *failed)})


def rescan(
    composition: Composition,
    looked: FolderScan,
    parts: Parts,
    models: dict[str, Model],
    texts: dict[str, Text],
    options: Options,
) -> tuple[Composition, Rescan]:
    """Serve what a look found; `models` and `texts` grow. Not while the engine is in a step.

    What others have changed since that look stays as they left it.
    """
    before = {expert.name: expert for expert in composition.experts}
    changed: list[str] = []
    kept: dict[str, CoterieError] = {}
    left_out: dict[str, CoterieError] = {n: why for n, why in looked.found.left_out.items() if n not in before}
    for name, was in looked.was.items():
        if models.get(name) is not was:
            continue
        try:
            if why := looked.failed.get(name):
                raise why
            model, text = looked.opened[name]
            if was is None or _runs(model) != _runs(was):
                serve_more(parts, models, name, model, options)
        except (UsageError, CapacityError, ConflictError) as error:
            (kept if name in before else left_out)[name] = error
        else:
            models[name], texts[name] = model, text
            changed.append(name)
    now = before | {expert.name: expert for expert in looked.found.experts if expert.name in changed}
    composition = replace(composition, experts=tuple(now.values()), left_out=left_out)
    added, renewed = ([name for name in changed if (name in before) == old] for old in (False, True))
    return composition, Rescan(tuple(added), tuple(renewed), kept, left_out)


def reopen(expert: Expert, options: Options, bases: dict[Path, Model]) -> Model:
    """An expert's model as its files are now. Raises UsageError."""
    assert expert.checkpoint is not None
    model = with_kv_type(open_expert(expert, expert.checkpoint, bases), options.kv_type)
    return with_defaults(rounded_for(model, options.activations, options.device), options.sampling)


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
