"""Opens a composition as the shared options say. Separate from options.py, since most commands open none.

Knows nothing about what the commands do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from inspect import Signature, signature
from typing import Any, TypeVar

from coterie.api import Options
from coterie.api.assemble import policy_for
from coterie.api.sampling import CHECKPOINT
from coterie.cli.options import (
    ActivationsOpt,
    DeviceOpt,
    DevicesOpt,
    DraftOpt,
    KvOpt,
    KvTypeOpt,
    MaxBatchOpt,
    NearOpt,
    PoolOpt,
    ReuseOpt,
    SamplingOpt,
    SpeculateOpt,
    ThreadsOpt,
    err,
)
from coterie.composition.composition import Composition, load_composition
from coterie.core.errors import UnsupportedError
from coterie.engine.experts import open_experts, open_servable
from coterie.models.model import AUTO, Model, with_kv_type

T = TypeVar("T")


def options(
    near: NearOpt = None,
    pool: PoolOpt = None,
    kv: KvOpt = None,
    kv_type: KvTypeOpt = AUTO,
    reuse: ReuseOpt = True,
    speculate: SpeculateOpt = None,
    draft: DraftOpt = "",
    device: DeviceOpt = "cpu",
    threads: ThreadsOpt = None,
    activations: ActivationsOpt = AUTO,
    sampling: SamplingOpt = CHECKPOINT,
    max_batch: MaxBatchOpt = None,
) -> Options:
    """The Options for these command-line options. Raises UsageError."""
    return Options(
        near_bytes=near,
        pool_bytes=pool,
        kv_bytes=kv,
        kv_type=kv_type,
        reuse=reuse,
        draft=draft,
        device=device,
        threads=threads,
        activations=activations,
        sampling=sampling,
        policy=replace(policy_for(device, max_batch), max_guesses=speculate),
    )


def with_options(*names: str, several: bool = False) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorator: replace a command's parameter `how` by the named options of `options`, and pass it their Options.

    `several`: --device may be repeated. Typer reads a command's options from its signature, so that is rewritten.
    """

    def opening(command: Callable[..., T]) -> Callable[..., T]:
        shared = dict(signature(options, eval_str=True).parameters)
        if several:
            shared["device"] = shared["device"].replace(annotation=DevicesOpt, default=["cpu"])
        own = signature(command, eval_str=True).parameters.values()
        each = ([shared[name] for name in names] if one.name == "how" else [one] for one in own)
        whole = Signature([one for some in each for one in some])

        @wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> T:
            bound = whole.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            values = {name: given.pop(name) for name in names}
            devices = tuple(values["device"]) if several else ()
            if devices:
                values["device"] = devices[0]
            return command(how=replace(options(**values), beside=devices[1:]), **given)

        vars(wrapped)["__signature__"] = whole
        return wrapped

    return opening


def open_for_modelling(ref: str) -> tuple[Composition, dict[str, Model]]:
    """A composition and its models for modelling only: experts without weights are accepted.

    Experts of a folder that cannot be opened are left out with a message, as in serving.
    """
    found = load_composition(ref)
    if not found.skips_unservable:
        return found, open_experts(found, synthetic=True)
    found, models = open_servable(found)
    say_left_out(found)
    return found, models


def open_text_models(ref: str, kv_type: str = AUTO) -> tuple[Composition, dict[str, Model]]:
    """Like `open_for_modelling`, for experts that generate text, with a KV cache of this type.

    Raises UnsupportedError if an expert generates no text or does not support this type, UsageError for an unknown one.
    """
    found, opened = open_for_modelling(ref)
    models = {name: with_kv_type(model, kv_type) for name, model in opened.items()}
    silent = [name for name in found.names if not models[name].samples_tokens]
    if silent:
        fact = f"has experts that only give vectors (embeddings) or scores, and generate no text: {', '.join(silent)}"
        raise UnsupportedError(found.name, fact, "leave them out of the composition")
    return found, models


def say_left_out(composition: Composition) -> None:
    """Report on stderr which experts are left out, and why; and which experts lose their draft expert by that."""
    left_out = composition.left_out
    lines = [f"{name} is left out: {error}" for name, error in left_out.items()]
    lines += [
        f"{one.name} has no draft, as {one.draft} is left out" for one in composition.experts if one.draft in left_out
    ]
    for line in lines:
        err.print(f"coterie: {line}", style="yellow", markup=False)
