"""ServedExpert: what the engine must know about an expert to run it.

Knows nothing about checkpoints or model families; the api builds these from models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from coterie.checkpoint.layout import Layout
from coterie.core.errors import ContextError, NotFoundError, RequestError
from coterie.device import Buffer, Executable, Shared
from coterie.graph.program import KvShape


@dataclass(frozen=True, slots=True)
class Base:
    """A base's weights in the run tier, which are never evicted."""

    layout: Layout
    weights: Buffer


Places: TypeAlias = tuple[tuple[int, ...], Shared | None]
"""Offsets of the weights in the program's order, and which of them are in a second extent."""


def places_of(names: Sequence[str], layout: Layout, base: Base | None = None) -> Places:
    """Where the weights of these names are: in the layout's extent, or, if it lacks them, in the base's."""
    if base is None:
        return layout.offsets(tuple(names)), None
    shared = shared_places(names, layout)
    tensors = {**base.layout.tensors, **layout.tensors}
    return tuple([tensors[name].offset for name in names]), Shared(base.weights, shared)


def shared_places(names: Sequence[str], layout: Layout) -> tuple[int, ...]:
    """The indices of those weights that come from the base, because the layout lacks them."""
    return tuple([place for place, name in enumerate(names) if name not in layout.tensors])


@dataclass(frozen=True, slots=True)
class ServedExpert:
    """An expert that can serve requests: where its bytes go, and its program (shared by experts of one architecture).

    `base`: for an adapter, holds the weights that its layout lacks.
    `draft`: its draft expert, which has the same tokens; empty: none.
    """

    expert_id: str
    layout: Layout
    exe: Executable
    kv: KvShape
    max_context: int
    vocab_size: int
    base: Base | None = None
    draft: str = ""

    @property
    def places(self) -> Places:
        """Where each of the program's weights is."""
        return places_of(self.exe.program.weights, self.layout, self.base)

    @property
    def keeps_state(self) -> bool:
        """Whether a sequence's KV state is valid for other sequences with the same prefix."""
        return not (self.kv.recurrent or self.exe.program.bidirectional)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, including the base's."""
        return self.layout.size_bytes + (self.base.layout.size_bytes if self.base else 0)

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt; if tokens are drawn, one position is left for the first."""
        return self.max_context - self.exe.program.samples_tokens

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Raise RequestError, with numbers, for a prompt that this expert cannot take."""
        if len(prompt_ids) > self.max_prompt_tokens:
            raise too_long(self.expert_id, f"{len(prompt_ids)} tokens", self.max_context, self.max_prompt_tokens)
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            wrong = next(t for t in prompt_ids if not 0 <= t < self.vocab_size)
            fact = f"the prompt holds token {wrong} but the vocabulary has {self.vocab_size}"
            raise RequestError(self.expert_id, fact, "leave it out, or use this expert's tokenizer")


def too_long(expert_id: str, has: str, max_context: int, max_prompt_tokens: int) -> ContextError:
    """The error for a prompt that `has` more than the `max_prompt_tokens` that fit in the context of an expert."""
    fact = f"the prompt has {has} but the context of this expert holds {max_context}"
    return ContextError(expert_id, fact, f"shorten it to {max_prompt_tokens} tokens or fewer")


def served_as(expert_id: str, experts: Mapping[str, ServedExpert]) -> ServedExpert:
    """The expert of that name. Raises NotFoundError."""
    found = experts.get(expert_id)
    if found is None:
        known = ", ".join(sorted(experts)[:8])
        raise NotFoundError(expert_id, f"no such expert among {len(experts)}", f"some are {known}")
    return found
