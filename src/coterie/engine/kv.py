"""KVPool: who owns which KV block. Blocks are equal in bytes; tokens per block follow from the expert's KvShape.

    slab   | 0 | 1 | 2 | 3 | ...      free + owned + retiring == all
             a   a   -   b            a block returns to `free` only when the last step that uses it is finished

Knows nothing about experts, requests or what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from coterie.core.errors import CapacityError
from coterie.device import Buffer, Event
from coterie.graph.program import KvShape


class KVPool:
    """Hands out blocks of a KV slab to sequences and takes them back."""

    def __init__(self, buffer: Buffer, block_bytes: int) -> None:
        self.buffer, self.block_bytes = buffer, block_bytes
        self.num_blocks = buffer.size_bytes // block_bytes
        if self.num_blocks == 0:
            levers = ("a larger KV budget", "smaller KV blocks")
            raise CapacityError("kv", "one KV block", block_bytes, buffer.size_bytes, levers)
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._owned: dict[int, tuple[int, ...]] = {}
        self._uses: list[tuple[Event, Collection[int]]] = []
        self._retiring: list[tuple[Event, tuple[int, ...]]] = []
        self._per_block: dict[int, tuple[KvShape, int]] = {}  # by identity: asked for with every request and batch

    @property
    def free_blocks(self) -> int:
        """Blocks that can be handed out now."""
        return len(self._free)

    def tokens_per_block(self, kv: KvShape) -> int:
        """How many tokens of this architecture a block holds."""
        known = self._per_block.get(id(kv))
        if known is None:
            known = self._per_block[id(kv)] = kv, kv.tokens_per_block(self.block_bytes)
        return known[1]

    def blocks_for(self, tokens: int, kv: KvShape) -> int:
        """How many blocks `tokens` tokens need. Raises CapacityError when one token is larger than a block."""
        per_block = self.tokens_per_block(kv)
        if per_block == 0:
            levers = (f"raise the KV block size to at least {kv.bytes_per_token} bytes",)
            raise CapacityError("kv", "the KV state of one token", kv.bytes_per_token, self.block_bytes, levers)
        return -(-tokens // per_block)

    def check_fits(self, tokens: int, kv: KvShape, where: str) -> int:
        """The blocks that `tokens` tokens need. Raises CapacityError when the whole pool is smaller than that."""
        blocks = self.blocks_for(tokens, kv)
        if blocks > self.num_blocks:
            levers = ("a larger KV budget", "a shorter prompt", "a smaller max_tokens")
            demand, bound = blocks * self.block_bytes, self.num_blocks * self.block_bytes
            raise CapacityError(where, f"the KV state of {tokens} tokens", demand, bound, levers)
        return blocks

    def allocate(self, owner: int, blocks: int) -> tuple[int, ...]:
        """Give `blocks` blocks to a new owner. The caller has checked `free_blocks`."""
        if owner in self._owned or blocks > len(self._free):
            raise ValueError(
                f"owner {owner} wants {blocks} blocks; {len(self._free)} are free, owners {sorted(self._owned)}"
            )
        taken = self._owned[owner] = tuple([self._free.pop() for _ in range(blocks)])
        return taken

    def blocks(self, owner: int) -> tuple[int, ...]:
        """The owner's blocks, in the order of their tokens."""
        return self._owned[owner]

    def use(self, owners: Collection[int], event: Event) -> None:
        """Say that a step which reads or writes the blocks of these owners is done with `event`."""
        self._uses.append((event, owners))

    def finished(self, event: Event) -> None:
        """Say that a step is done, which a poll would find out too."""
        self._uses = [use for use in self._uses if use[0] is not event]

    def free(self, owner: int) -> None:
        """Take the owner's blocks back, as soon as the last step that uses them is finished."""
        blocks = self._owned.pop(owner)
        event = next((event for event, owners in reversed(self._uses) if owner in owners), None)
        if event is None:
            self._free.extend(reversed(blocks))
        else:
            self._retiring.append((event, blocks))

    def poll(self, done: Callable[[Event], bool]) -> None:
        """Free the blocks whose last step is finished."""
        if self._uses:
            self._uses = [use for use in self._uses if not done(use[0])]
        if not self._retiring:
            return
        waiting = self._retiring
        self._retiring = []
        for event, blocks in waiting:
            if done(event):
                self._free.extend(reversed(blocks))
            else:
                self._retiring.append((event, blocks))

    def check_integrity(self) -> None:
        """Raise ValueError unless every block has exactly one place."""
        owned = [block for blocks in self._owned.values() for block in blocks]
        retiring = [block for _, blocks in self._retiring for block in blocks]
        if sorted(self._free + owned + retiring) != list(range(self.num_blocks)):
            counts = f"{len(self._free)} free, {len(owned)} owned, {len(retiring)} retiring of {self.num_blocks}"
            raise ValueError(f"KV blocks do not add up: {counts}")
