"""How to open a composition, from the options that several commands share; apart, since most commands open none.

Knows nothing about what the commands do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from coterie.api import Options
from coterie.api.assemble import policy_for
from coterie.api.sampling import CHECKPOINT
from coterie.cli.options import say_left_out
from coterie.composition.composition import Composition, load_composition
from coterie.core.errors import UnsupportedError
from coterie.engine.experts import open_experts, open_folder
from coterie.engine.recording import MAX_WORKS
from coterie.models.model import AUTO, Model


def options(
    device: str,
    near: int | None,
    kv: int | None,
    threads: int | None,
    trace: Path | None = None,
    activations: str = AUTO,
    pool: int | None = None,
    reuse: bool = True,
    speculate: int | None = None,
    sampling: str = CHECKPOINT,
    draft: str = "",
    max_batch: int | None = None,
) -> Options:
    """Gather the shared options."""
    record = MAX_WORKS if trace is not None else 0
    how = Options(device=device, threads=threads, record=record, activations=activations, sampling=sampling)
    how = replace(how, draft=draft)
    how = replace(how, policy=replace(policy_for(device, max_batch), max_guesses=speculate))
    return replace(how, near_bytes=near, kv_bytes=kv, pool_bytes=pool, reuse=reuse)


def opened_to_price(ref: str) -> tuple[Composition, dict[str, Model]]:
    """A composition and its models, of which no number is computed: those without bytes will do.

    What cannot be opened of a folder is told and left out, as where it is served.
    """
    found = load_composition(ref)
    if not found.is_folder:
        return found, open_experts(found, synthetic=True)
    found, models = open_folder(found)
    say_left_out(found.left_out)
    return found, models


def opened_to_answer(ref: str) -> tuple[Composition, dict[str, Model]]:
    """As `opened_to_price`, of experts that are to answer. Raises UnsupportedError where one does not."""
    found, models = opened_to_price(ref)
    silent = [name for name in found.names if not models[name].draws]
    if silent:
        fact = f"has experts that give vectors (embeddings) or scores alone, and answer nothing: {', '.join(silent)}"
        raise UnsupportedError(found.name, fact, "leave them out of the composition")
    return found, models
