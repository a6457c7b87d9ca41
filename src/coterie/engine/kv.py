"""KVPool: which sequence owns which KV block. Blocks have equal bytes; their tokens follow from the expert's KvShape.

    slab   | 0 | 1 | 2 | 3 | 4 | ...  free + owned + retiring + unused == all, a shared block counted once
             a  a,b  -   b   ~        a block becomes free (-), or unused (~) but known by its tokens (prefix.py), once
                                      the last step that uses it is finished; unused ones go when none is free

Knows nothing about experts, requests or what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from coterie.core.errors import CapacityError, OversizeError
from coterie.device import Buffer, Event
from coterie.engine.prefix import Node, PrefixTrees
from coterie.graph.program import KvShape

MAX_SHAPES = 1024  # bound on remembered shapes: each expert has an object of its own, and experts come and go


@dataclass(slots=True)
class _Sharing:
    """An owner that shares: its key, tokens per block, and the prefix nodes of its leading blocks.

    `tokens`: set when it is freed: the tokens whose KV state its blocks hold.
    """

    key: str
    size: int
    chain: list[Node]
    tokens: Sequence[int] = ()


def tokens_held(num_blocks: int, block_bytes: int, kv: KvShape) -> int:
    """How many tokens of one sequence of this architecture `num_blocks` blocks hold."""
    return max(num_blocks - kv.state_blocks(block_bytes), 0) * kv.tokens_per_block(block_bytes)


class KVPool:
    """Hands out blocks of a KV slab to sequences and takes them back. `reuses`: keep a prefix cache."""

    def __init__(self, buffer: Buffer, block_bytes: int, reuses: bool = True) -> None:
        self.buffer, self.block_bytes, self.reuses = buffer, block_bytes, reuses
        self.num_blocks = buffer.size_bytes // block_bytes
        if self.num_blocks == 0:
            levers = ("a larger KV budget", "smaller KV blocks")
            raise CapacityError("kv", "one KV block", block_bytes, buffer.size_bytes, levers)
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._owned: dict[int, tuple[int, ...]] = {}
        self._reserved: dict[int, int] = {}  # blocks promised to owners that have not begun
        self._promised = 0  # all blocks promised to owners, or retiring
        self._sharing: dict[int, _Sharing] = {}
        self._prefixes = PrefixTrees()
        self._uses: list[tuple[Event, Collection[int]]] = []
        self._retiring: list[tuple[Event, tuple[int, ...], _Sharing | None]] = []
        self._per_block: dict[int, tuple[KvShape, int]] = {}  # keyed by identity: looked up for every request and batch

    @property
    def free_blocks(self) -> int:
        """Blocks not promised to anyone.

        A shared block counts once for each of its owners, so whether another sequence fits does not depend on sharing.
        """
        return self.num_blocks - self._promised

    @property
    def cached_blocks(self) -> int:
        """Unused blocks whose tokens are known."""
        return self._prefixes.num_unused

    @property
    def used_blocks(self) -> int:
        """Blocks in use, a shared one counted once."""
        return self.num_blocks - len(self._free) - self._prefixes.num_unused

    @property
    def reserved(self) -> int:
        """How many owners have a reservation but have not begun."""
        return len(self._reserved)

    def tokens_per_block(self, kv: KvShape) -> int:
        """How many tokens of this architecture a block holds."""
        known = self._per_block.get(id(kv))
        if known is None:
            if len(self._per_block) >= MAX_SHAPES:
                self._per_block.clear()  # entries still in use are recreated
            known = self._per_block[id(kv)] = kv, kv.tokens_per_block(self.block_bytes)
        return known[1]

    def blocks_for(self, tokens: int, kv: KvShape) -> int:
        """How many blocks a sequence of `tokens` tokens needs, including its recurrent state.

        Raises CapacityError when one token, or one unit of state, is larger than a block.
        """
        per_block = self.tokens_per_block(kv)
        if per_block == 0:
            least = kv.min_block_bytes
            levers = (f"raise the KV block size to at least {least} bytes",)
            what = "the KV state of one token" if least == kv.bytes_per_token else "one unit of recurrent state"
            raise CapacityError("kv", what, least, self.block_bytes, levers)
        return self.state_blocks(kv) - (-tokens // per_block)

    def state_blocks(self, kv: KvShape) -> int:
        """How many leading blocks of a sequence hold its recurrent state."""
        return kv.state_blocks(self.block_bytes)

    def tokens_held(self, kv: KvShape) -> int:
        """How many tokens of one sequence the whole pool holds."""
        return tokens_held(self.num_blocks, self.block_bytes, kv)

    def check_fits(self, tokens: int, prompt_tokens: int, kv: KvShape, where: str) -> int:
        """The blocks that `tokens` tokens need, including the prompt's. Raises OversizeError if the pool has fewer."""
        blocks = self.blocks_for(tokens, kv)
        if blocks > self.num_blocks:
            held = self.tokens_held(kv)
            # The last token of an answer is never fed back, so it needs no place.
            room = held - prompt_tokens + 1
            shorter = f"shorten the prompt: it and max_tokens may have {held + 1} tokens together"
            if room > 0:
                shorter = f"set max_tokens to at most {room}"
            demand, bound = blocks * self.block_bytes, self.num_blocks * self.block_bytes
            what = f"the KV state of {tokens} tokens ({prompt_tokens} of the prompt, the others for max_tokens)"
            raise OversizeError(where, what, demand, bound, (shorter, f"set --kv to at least {demand} B"))
        return blocks

    def shortage_error(self, blocks: int, whose: str, where: str) -> CapacityError:
        """The error for a lack of `blocks` free blocks, for a sequence of expert `whose`; `where`: what needs them."""
        size, free = self.block_bytes, self.free_blocks
        levers = (f"set --kv to at least {(self.num_blocks + blocks - free) * size} B", "ask with a smaller max_tokens")
        return CapacityError(where, f"the KV state of {whose}", blocks * size, free * size, levers)

    def allocate(self, owner: int, blocks: int) -> tuple[int, ...]:
        """Give `blocks` unshared blocks to a new owner. The caller has checked `free_blocks`."""
        self._promise(owner, blocks)
        taken = self._owned[owner] = tuple(self._take(blocks))
        return taken

    def reserve(self, owner: int, blocks: int) -> None:
        """Promise `blocks` blocks to a new owner; `begin` chooses them. The caller has checked `free_blocks`."""
        self._promise(owner, blocks)
        self._reserved[owner] = blocks

    def begin(self, owner: int, key: str, tokens: Sequence[int], kv: KvShape) -> int:
        """Choose a reserved owner's blocks; returns how many of its leading tokens already have KV state there.

        These are whole blocks that an owner of the same key computed for the same tokens at the same positions. Never
        all of them: the last token is always computed, to get its logits.
        """
        size = self.tokens_per_block(kv)
        chain = self._prefixes.find(key, tokens, size)
        self._prefixes.acquire(chain)
        self._sharing[owner] = _Sharing(key, size, chain)
        own = self._take(self._reserved.pop(owner) - len(chain))
        self._owned[owner] = (*[node.block for node in chain], *own)
        return len(chain) * size

    def reusable_tokens(self, key: str, tokens: Sequence[int], kv: KvShape) -> int:
        """How many leading tokens of an owner would find their KV state, if it began now."""
        size = self.tokens_per_block(kv)
        return len(self._prefixes.find(key, tokens, size)) * size

    def publish(self, owner: int, tokens: Sequence[int]) -> None:
        """Publish the blocks a running owner has filled: the state of these tokens, whose steps are finished."""
        sharing = self._sharing.get(owner)
        if sharing is not None:
            self._prefixes.extend(sharing.chain, sharing.key, tokens, sharing.size, self._owned[owner])

    def forget(self, owner: int) -> None:
        """Stop sharing what an owner computed or was given, and everything computed after it in the tree."""
        sharing = self._sharing.get(owner)
        if sharing is not None:
            self._free += self._prefixes.forget(sharing.chain[:1])

    def forget_all(self, key: str) -> None:
        """Stop sharing everything computed so far by owners of this key."""
        self._free += self._prefixes.forget(self._prefixes.roots(key))

    def forget_unused(self) -> bool:
        """Drop all unused blocks; returns whether no block is in use then."""
        self._free += self._prefixes.evict(self._prefixes.num_unused)
        return not self.used_blocks

    def blocks(self, owner: int) -> tuple[int, ...]:
        """The owner's blocks, in token order."""
        return self._owned[owner]

    def use(self, owners: Collection[int], event: Event) -> None:
        """Record that a step which reads or writes the blocks of these owners is done with `event`."""
        self._uses.append((event, owners))

    def finished(self, event: Event) -> None:
        """Report that a step is done, ahead of the next poll."""
        self._uses = [use for use in self._uses if use[0] is not event]

    def free(self, owner: int, tokens: Sequence[int] = ()) -> None:
        """Take the owner's blocks back as soon as the last step that uses them is finished.

        If it shares, others may reuse those that hold the KV state of these tokens, whose steps are finished.
        """
        if owner in self._reserved:
            self._promised -= self._reserved.pop(owner)
            return
        blocks, sharing = self._owned.pop(owner), self._sharing.pop(owner, None)
        if sharing is not None:
            sharing.tokens = tokens
        event = next((event for event, owners in reversed(self._uses) if owner in owners), None)
        if event is None:
            self._release(blocks, sharing)
        else:
            self._retiring.append((event, blocks, sharing))

    def poll(self, done: Callable[[Event], bool]) -> None:
        """Free the blocks whose last step is finished."""
        if self._uses:
            self._uses = [use for use in self._uses if not done(use[0])]
        if not self._retiring:
            return
        waiting = self._retiring
        self._retiring = []
        for event, blocks, sharing in waiting:
            if done(event):
                self._release(blocks, sharing)
            else:
                self._retiring.append((event, blocks, sharing))

    def check_integrity(self) -> None:
        """Raise ValueError unless each block is in exactly one place, is known once, and has the users it counts."""
        known = self._prefixes.nodes()
        held = [(self._owned[owner], self._sharing.get(owner)) for owner in self._owned]
        held += [(blocks, sharing) for _, blocks, sharing in self._retiring]
        chains = [sharing.chain for _, sharing in held if sharing is not None]
        nodes = {node: None for chain in ([known], chains) for each in chain for node in each}
        own = [block for blocks, sharing in held for block in blocks[len(sharing.chain) if sharing else 0 :]]
        if sorted([*self._free, *own, *[node.block for node in nodes]]) != list(range(self.num_blocks)):
            counts = f"{len(self._free)} free, {len(own)} owned, {len(nodes)} shared or known of {self.num_blocks}"
            raise ValueError(f"KV blocks do not add up: {counts}")
        if self._promised != sum(self._reserved.values()) + sum(len(blocks) for blocks, _ in held):
            raise ValueError(f"{self._promised} KV blocks are promised, not what the owners were")
        for node in nodes:
            users = sum(node in chain for chain in chains)
            if node.num_users != users:
                raise ValueError(f"KV block {node.block} counts {node.num_users} users but has {users}")
        for blocks, sharing in held:
            if sharing and [node.block for node in sharing.chain] != list(blocks[: len(sharing.chain)]):
                raise ValueError(f"an owner of KV blocks {blocks} shares others")
        self._prefixes.check_order()

    def _promise(self, owner: int, blocks: int) -> None:
        if owner in self._owned or owner in self._reserved or blocks > self.free_blocks:
            owners = sorted([*self._owned, *self._reserved])
            raise ValueError(f"owner {owner} wants {blocks} blocks; {self.free_blocks} are free, owners {owners}")
        self._promised += blocks

    def _take(self, count: int) -> list[int]:
        """Blocks to write into. There are always enough: no owner takes more than it was promised."""
        free = self._free
        if count > len(free):
            free += self._prefixes.evict(count - len(free))
        return [free.pop() for _ in range(count)]

    def _release(self, blocks: tuple[int, ...], sharing: _Sharing | None) -> None:
        self._promised -= len(blocks)
        if sharing is None:
            self._free.extend(reversed(blocks))
        else:
            self._free += self._prefixes.release(sharing.chain, sharing.key, sharing.tokens, sharing.size, blocks)
