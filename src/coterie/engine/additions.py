"""Experts added or changed after the engine has started.

    model -> does it fit what was reserved at start? -> its program, compiled if its architecture is new -> served

Reserves nothing, so an expert that needs more memory is refused. Knows nothing about where models come from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from coterie.checkpoint.layout import Layout
from coterie.core.errors import CapacityError, ConflictError, TransferError
from coterie.device import Executable
from coterie.engine.assembly import Parts, Settings, limits_of, page_bytes, served_of, work_bytes
from coterie.engine.bases import folder_of
from coterie.engine.served import Base
from coterie.graph.compile import compile_graph
from coterie.memory.pins import offsets_if_added
from coterie.memory.slab import round_up
from coterie.memory.split import side_of
from coterie.models.model import Model

_RESTART = "restart the server, so that memory is divided again"


def add_expert(parts: Parts, models: Mapping[str, Model], name: str, model: Model, settings: Settings) -> None:
    """Serve a model under a name, between two steps, replacing any unused expert of that name.

    `models`: those served now. Raises CapacityError if it needs more than was reserved, ConflictError if its base is
    not in memory, if the expert it replaces is in use, loading or pinned, or if pins leave it no room. On an error
    nothing has changed.
    """
    base = _base(parts, models, model)
    cache = side_of(parts.all_weights, name)
    control = parts.engine.control
    sharing = [
        other for other in models if side_of(parts.all_weights, other) is cache and control.may_need_memory(other)
    ]
    sizes = {other: models[other].layout.size_bytes for other in sharing}
    places = offsets_if_added(cache, name, sizes | {name: model.layout.size_bytes})
    exe = _program(parts, models, name, model, settings)
    if name in parts.served:
        control.unload(name)
        parts.kv.forget_all(name)  # what other weights have computed
    for pinned in places:
        cache.pin(pinned, places)
    parts.served[name] = served_of(name, model, exe, base)
    parts.engine.renewed(name)


def forget_retired(parts: Parts, models: Mapping[str, Model], back: Collection[str]) -> tuple[str, ...]:
    """Drop all state of retired experts that have no requests left and are not coming `back`; returns them.

    Call between two steps. The last expert of an architecture stays, as does the last of a base: later ones are served
    by its program, or share its base's weights.
    """
    control, gone, known = parts.engine.control, list[str](), dict(models)
    for name in sorted((control.retired & models.keys()).difference(back)):
        shared = {_shared(other) for other_name, other in known.items() if other_name != name}
        drafts = any(served.draft == name for other, served in parts.served.items() if other in known)
        if drafts or _shared(known[name]) not in shared or not control.forget(name):
            continue
        del known[name], parts.served[name]
        parts.kv.forget_all(name)
        parts.engine.metrics.forget(name)
        parts.engine.renewed(name)
        gone.append(name)
    return tuple(gone)


def _shared(model: Model) -> tuple[str, str]:
    """What experts may share: a program, and the weights of a base."""
    return model.key, "" if model.base is None else folder_of(model.base)


def set_draft(parts: Parts, name: str, draft: str) -> None:
    """Set or (empty) unset an expert's draft, even while it answers."""
    if parts.served[name].draft != draft:
        parts.served[name] = replace(parts.served[name], draft=draft)
        parts.engine.renewed(name)


def is_in_memory(parts: Parts, name: str) -> bool:
    """Whether any memory has an expert's weights."""
    return any(name in ledger.copies for ledger in side_of(parts.all_weights, name).ledgers)


def replace_layout(parts: Parts, name: str, layout: Layout) -> None:
    """Give an expert that is in no memory a layout of the same form, whose files may differ. Call before its load.

    Its running requests begin again, and continue if the new weights reproduce the tokens drawn so far; those that
    cannot begin again end with an error.
    """
    parts.kv.forget_all(name)  # what other weights have computed
    served = parts.served[name] = replace(parts.served[name], layout=layout)
    parts.engine.renewed(name)
    queue = parts.engine.queue
    for sequence in [one for one in queue.of(name) if queue.is_running(one) or one.paused]:
        if sequence.begin_again():
            if queue.is_running(sequence):
                parts.engine.reuse.end(sequence, failed=True)
                parts.engine.reuse.admit(served, sequence)
        else:
            fact = "its files changed while it answered, and its weights may have changed"
            parts.engine.fail([sequence], TransferError(name, fact, "ask again"))


def _base(parts: Parts, models: Mapping[str, Model], model: Model) -> Base | None:
    """The weights of an adapter's base, as another adapter of it has them."""
    if model.base is None:
        return None
    folder = folder_of(model.base)
    for name, other in models.items():
        base = other.base
        if base is not None and folder_of(base) == folder and base.layout.ranges == model.base.layout.ranges:
            return parts.served[name].base
    raise ConflictError(
        model.name, f"its base {folder} is not in memory in its present version, for adapters to share", _RESTART
    )


def _program(parts: Parts, models: Mapping[str, Model], name: str, model: Model, settings: Settings) -> Executable:
    """A model's program: that of an expert of its architecture, or a new one. Raises CapacityError for lack of room."""
    made, need = parts.plan, round_up(model.layout.size_bytes)
    room = side_of(parts.all_weights, name).ledgers[0].capacity_bytes
    if need > room:
        raise CapacityError(name, "the expert", need, room, [f"{_RESTART}, or with a larger --near"])
    for other, found in models.items():
        if found.key == model.key:
            return parts.served[other].exe
    block = page_bytes(model.kv)
    if block > made.block_bytes:
        raise CapacityError(name, "a KV block", block, made.block_bytes, [_RESTART])
    rules = settings.rule_set or parts.device.spec.rule_set
    work = work_bytes({name: model}, rules, settings.policy)
    if work > made.work_bytes:
        raise CapacityError(name, "the values of its largest step", work, made.work_bytes, [_RESTART])
    exe = parts.device.load(compile_graph(model.graph, rules))
    parts.device.expect(exe, limits_of(exe.program, model.max_context, settings.policy), made.block_bytes)
    return exe
