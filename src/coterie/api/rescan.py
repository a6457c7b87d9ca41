"""Reads a composition's file or folder again while it is served: which experts are new, replaced or gone.

    look_again, outside the engine: opens what is new, makes the router --> rescan, between two steps: serves it

Experts that are gone get no new requests, and finish those they have. Knows nothing about requests.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
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
from coterie.composition.routers.llm import ROUTER
from coterie.composition.routing import Routing
from coterie.core.errors import CapacityError, ConflictError, CoterieError, UsageError
from coterie.engine.additions import add_expert, forget_retired, set_draft
from coterie.engine.assembly import Parts
from coterie.engine.experts import open_expert
from coterie.models.model import Model, with_kv_type


@dataclass(frozen=True, slots=True)
class Rescan:
    """What a rescan changed: the experts added, renewed and removed.

    renewed: their weights, the files next to these, or their entry in the composition changed.
    kept: experts that should have changed but stay as they are, with the reason. Under ROUTER's name it may hold the
        router, and `renewed` its model.
    left_out: what is not served, likewise.
    """

    added: tuple[str, ...]
    renewed: tuple[str, ...]
    removed: tuple[str, ...]
    kept: Mapping[str, CoterieError]
    left_out: Mapping[str, CoterieError]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        kept, left_out = ({name: str(why) for name, why in found.items()} for found in (self.kept, self.left_out))
        changed = {"added": list(self.added), "renewed": list(self.renewed), "removed": list(self.removed)}
        return {**changed, "kept": kept, "left_out": left_out}


@dataclass(frozen=True, slots=True)
class Look:
    """What `look_again` found: the composition now, and its new or replaced experts, opened, or the error for each.

    `was`: the models served under these names until now, None if new. `gone`: experts served that are no longer there.
    `routing`: with the file's router, or the error that keeps the old one; `before`: the routing in use at the time.
    """

    before: Routing
    found: Composition
    routing: Routing | CoterieError
    opened: Mapping[str, tuple[Model, Text]]
    failed: Mapping[str, UsageError]
    was: Mapping[str, Model | None]
    gone: frozenset[str]


def look_again(routing: Routing, models: Mapping[str, Model], texts: Mapping[str, Text], options: Options) -> Look:
    """Read a composition's file or folder, and open what is new there. In any thread: opening hundreds takes seconds.

    Raises UsageError for a composition that was read from neither, changed from one to the other or changed its name;
    NotFoundError and CompositionError if it is gone, holds no expert, or its file or router is invalid.
    """
    composition = routing.composition
    if composition.source is None:
        raise UsageError(composition.name, "was read from no file or folder", "open it again")
    found = load_composition(composition.source, composition.skips_unservable)
    if (found.is_folder, found.name) != (composition.is_folder, composition.name):
        what = "folder" if found.is_folder else "file"
        fact = f"is the {what} {found.name} now, which was served as {composition.name}"
        raise UsageError(str(composition.source), fact, "restart the server, so that clients see its new name")
    before, models, texts = {expert.name: expert for expert in composition.experts}, dict(models), dict(texts)
    bases: dict[Path, Model] = {}
    opened: dict[str, tuple[Model, Text]] = {}
    failed: dict[str, UsageError] = {}
    was = {}
    own, previous = router_model(found), router_model(composition)
    for expert in (*found.experts, *([] if own is None or own != previous or routing.to_teach else [own])):
        name = expert.name
        if expert in (before.get(name), own) and not _changed(models[name], texts[name]):
            continue
        was[name] = models.get(name)
        try:
            model = reopen(expert, options, bases)
            opened[name] = model, open_texts({name: model})[name]
        except UsageError as error:
            failed[name] = error
    models |= {name: model for name, (model, _) in opened.items()}
    texts |= {name: text for name, (_, text) in opened.items()}
    for expert in found.experts:  # experts that were served without their named draft, which was missing
        name, draft = expert.name, expert.draft
        if name in before and name not in was and draft in models and models[name].draft != draft:
            was[name], opened[name] = models[name], (replace(models[name], draft=draft), texts[name])
            models[name] = opened[name][0]
    default = options.draft if options.draft in models and options.draft in found.names else ""
    for name, (_, text) in tuple(opened.items()):  # drafts are resolved when all models are known
        if found.skips_unservable and models[name].draft not in models:
            models[name] = replace(models[name], draft="")
        try:
            opened[name] = with_draft(name, models, texts, default), text
        except UsageError as error:
            del opened[name]
            failed[name] = error
    gone = frozenset(before).difference(found.names, found.left_out)
    return Look(routing, found, _routing_now(routing, found, models, texts), opened, failed, was, gone)


def router_model(composition: Composition) -> Expert | None:
    """The router's own model, if it has one."""
    return None if composition.router is None else composition.router.model


def _routing_now(
    routing: Routing, found: Composition, models: Mapping[str, Model], texts: Mapping[str, Text]
) -> Routing | CoterieError:
    """With the present router, or the error why the old one stays. Raises CompositionError if the router is invalid.

    Neither a router's own model nor the examples it embeds can change: they get memory, or are run, only at start.
    """
    spec, before = found.router, routing.composition.router
    own, previous = router_model(found), router_model(routing.composition)
    if own is None and previous is None:
        return Routing(found)
    if own == previous and spec is not None and before is not None:
        if not routing.to_teach:
            return Routing(found)
        same = (spec.kind, spec.fallback, spec.examples) == (before.kind, before.fallback, before.examples)
        if same and not _changed(models[ROUTER], texts[ROUTER]):
            return routing.tuned(spec).tuned_for(found)
    fact = "its model, files of that, or examples that its model embeds, have changed"
    return ConflictError("router", fact, "restart the server: these are read only at start")


def rescan(
    routing: Routing,
    looked: Look,
    parts: Parts,
    models: dict[str, Model],
    texts: dict[str, Text],
    options: Options,
) -> tuple[Routing, Rescan]:
    """Serve what a look found; updates `models` and `texts`. Call between two steps.

    Experts changed by someone else since that look keep their state. If an expert of a composition file is left out
    (the fallback, if the file allows leaving out), the old router stays, as the new one may choose that expert. If the
    old router stays, so do all experts it may choose.
    """
    composition = routing.composition
    before = {expert.name: expert for expert in composition.experts}
    served, control = {*before, ROUTER}, parts.engine.control
    for name in forget_retired(parts, models, looked.was.keys()):  # gone since an earlier look, and unused by now
        del models[name], texts[name]
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
            if was is None or _runs(model) != _runs(was) or not control.may_need_memory(name):
                add_expert(parts, models, name, model, options)
        except (UsageError, CapacityError, ConflictError) as error:
            (kept if name in served else left_out)[name] = error
        else:
            models[name], texts[name] = model, text
            control.retired.discard(name)
            changed.append(name)
    now = before | {expert.name: expert for expert in looked.found.experts if expert.name in changed}
    then, gone = looked.routing, looked.gone & before.keys()
    spec = looked.found.router
    must = left_out.keys() & {spec.fallback if spec else ""} if looked.found.skips_unservable else left_out.keys()
    if must and isinstance(then, Routing) and not looked.found.is_folder:
        fact = f"{', '.join(sorted(must))} of the file cannot be served"
        then = ConflictError("router", fact, "mend that, and ask again")
    if looked.before is not routing and composition.router is not None:
        then = ConflictError("router", "another rescan ran at the same time", "ask again")
    if isinstance(then, CoterieError):
        kept[ROUTER], gone, then = then, frozenset(), routing
    for name in gone:
        control.retire(name)
    aliases = _aliases(before if then is routing else {}, looked.found.owners, now)
    experts = tuple([replace(one, aliases=tuple(aliases[name])) for name, one in now.items() if name not in gone])
    alive = models.keys() - control.retired
    for name in alive:  # includes the router's own model
        draft = models[name].draft
        set_draft(parts, name, draft if draft in alive else "")
    added, renewed = ([name for name in changed if (name in served) == old] for old in (False, True))
    then = then.tuned_for(replace(then.composition, experts=experts, left_out=left_out, owners=looked.found.owners))
    return then, Rescan(tuple(added), tuple(renewed), tuple(sorted(gone)), kept, left_out)


def _aliases(stay: Mapping[str, Expert], owners: Mapping[str, str], names: Collection[str]) -> dict[str, list[str]]:
    """Each expert's aliases: as in the file, whatever became of weights, so that each alias belongs to one expert.

    Experts that `stay` keep their aliases; others get theirs as far as they are free. An alias that equals one of the
    `names` is dropped.
    """
    taken = {name for expert in stay.values() for name in (expert.name, *expert.aliases)}
    aliases: dict[str, list[str]] = {name: [] for name in names}
    for alias, name in owners.items():
        if name in names and name not in stay and alias not in taken:
            aliases[name].append(alias)
    aliases |= {name: list(expert.aliases) for name, expert in stay.items()}
    return {name: [alias for alias in its if alias not in names] for name, its in aliases.items()}


def reopen(expert: Expert, options: Options, bases: dict[Path, Model]) -> Model:
    """An expert's model from its present files. Raises UsageError."""
    if expert.checkpoint is None:
        raise UsageError(expert.name, "has no weights, so it is opened only at start", "restart the server")
    model = with_kv_type(open_expert(expert, expert.checkpoint, bases), options.kv_type)
    return with_defaults(rounded_for(model, options.activations, options.device), options.sampling)


def _runs(model: Model) -> object:
    """What the engine and the cache depend on: while it is equal, their state stays valid."""
    base = None if model.base is None else model.base.layout
    return model.key, model.layout, base, model.max_context, model.config.vocab_size


def _changed(model: Model, text: Text) -> bool:
    """Whether a file of its weights, or one beside them, has been replaced or removed since it was opened."""
    return _replaced(model) or text.files != files_of(model)


def _replaced(model: Model) -> bool:
    """Whether a file of its weights has been replaced or removed since it was opened."""
    files = {placed.source.path: placed.source.identity for placed in model.layout.ranges}
    try:
        return any(FileIdentity.of(os.stat(path)) != identity for path, identity in files.items() if path)
    except OSError:
        return True
