"""ServedExpert: what the engine must know of an expert to run it.

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
    """The weights of a base in the run tier, which stay where they are."""

    layout: Layout
    weights: Buffer


Places: TypeAlias = tuple[tuple[int, ...], Shared | None]
"""Offsets of weights in the program's order, and which of them are in a second extent."""


def places_of(names: Sequence[str], layout: Layout, base: Base | None = None) -> Places:
    """Where weights of these names are: in the layout's extent, or where it does not have them in the base's."""
    if base is None:
        return layout.offsets(tuple(names)), None
    shared = shared_places(names, layout)
    tensors = {**base.layout.tensors, **layout.tensors}
    return tuple([tensors[name].offset for name in names]), Shared(base.weights, shared)


def shared_places(names: Sequence[str], layout: Layout) -> tuple[int, ...]:
    """Which of the weights of these names a base has, as the layout does not."""
    return tuple([place for place, name in enumerate(names) if name not in layout.tensors])


@dataclass(frozen=True, slots=True)
class ServedExpert:
    """An expert that can be asked: where its bytes go, and its program (shared by experts of one architecture).

    `base`: of an adapter, where the weights are that its layout does not have. `draft`: its draft expert,
    whose tokens are the same; empty: none.
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
        """Whether what a sequence leaves of its KV state is of use to one that begins alike."""
        return not (self.kv.recurrent or self.exe.program.sees_all)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, those of the base too."""
        return self.layout.size_bytes + (self.base.layout.size_bytes if self.base else 0)

    @property
    def most_prompt_tokens(self) -> int:
        """Where a token is drawn, there must be room for it too."""
        return self.max_context - self.exe.program.draws

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Raise RequestError, with numbers, for a prompt that this expert cannot take."""
        if len(prompt_ids) > self.most_prompt_tokens:
            raise too_long(self.expert_id, f"{len(prompt_ids)} tokens", self.max_context, self.most_prompt_tokens)
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            wrong = next(t for t in prompt_ids if not 0 <= t < self.vocab_size)
            fact = f"the prompt holds token {wrong} but the vocabulary has {self.vocab_size}"
            raise RequestError(self.expert_id, fact, "leave it out, or use this expert's tokenizer")


def too_long(expert_id: str, has: str, max_context: int, most: int) -> ContextError:
    """That a prompt `has` more than an expert of such a context takes, which is `most` tokens."""
    fact = f"the prompt has {has} but the context of this expert holds {max_context}"
    return ContextError(expert_id, fact, f"shorten it to {most} tokens or fewer")


def served_as(expert_id: str, experts: Mapping[str, ServedExpert]) -> ServedExpert:
    """The expert of that name. Raises NotFoundError."""
    found = experts.get(expert_id)
    if found is None:
        known = ", ".join(sorted(experts)[:8])
        raise NotFoundError(expert_id, f"no such expert among {len(experts)}", f"some are {known}")
    return found
