"""ServedExpert: what the engine must know of an expert to run it.

Knows nothing about checkpoints or model families; the api builds these from models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coterie.checkpoint.layout import Layout
from coterie.core.errors import ContextError, NotFoundError, RequestError
from coterie.device import Executable
from coterie.graph.program import KvShape


@dataclass(frozen=True, slots=True)
class ServedExpert:
    """An expert that can be asked: where its bytes go, and its program (shared by experts of one architecture)."""

    expert_id: str
    layout: Layout
    exe: Executable
    kv: KvShape
    max_context: int
    vocab_size: int

    @property
    def offsets(self) -> tuple[int, ...]:
        """Offsets of the weights in the extent, in the program's order."""
        return self.layout.offsets(self.exe.program.weights)

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Raise RequestError, with numbers, for a prompt that this expert cannot take."""
        if len(prompt_ids) >= self.max_context:
            fact = f"the prompt has {len(prompt_ids)} tokens but the context of this expert holds {self.max_context}"
            raise ContextError(self.expert_id, fact, f"shorten it to {self.max_context - 1} tokens or fewer")
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            wrong = next(t for t in prompt_ids if not 0 <= t < self.vocab_size)
            fact = f"the prompt holds token {wrong} but the vocabulary has {self.vocab_size}"
            raise RequestError(self.expert_id, fact, "leave it out, or use this expert's tokenizer")


def served_as(expert_id: str, experts: Mapping[str, ServedExpert]) -> ServedExpert:
    """The expert of that name. Raises NotFoundError."""
    found = experts.get(expert_id)
    if found is None:
        known = ", ".join(sorted(experts)[:8])
        raise NotFoundError(expert_id, f"no such expert among {len(experts)}", f"some are {known}")
    return found
