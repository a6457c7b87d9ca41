"""KVPool: who owns which KV block. Blocks are equal in bytes; tokens per block follow from the expert's KvShape.

    slab   | 0 | 1 | 2 | 3 | 4 | ...  free + owned + retiring + unused == all, a shared block counted once
             a  a,b  -   b   ~        a block is free, or `~` unused but known by its tokens (prefix.py), only when the
                                      last step that uses it is finished; unused ones are taken when no free one is left

Knows nothing about experts, requests or what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from coterie.core.errors import CapacityError, OversizeError
from coterie.device import Buffer, Event
from coterie.engine.prefix import Node, Prefixes
from coterie.graph.program import KvShape

MAX_SHAPES = 1024  # whose tokens per block are remembered: experts come and go, each with an object of its own


@dataclass(slots=True)
class _Sharing:
    """An owner that shares: with whom (those of its key), tokens of a block, and the nodes of its first blocks.

    `tokens`: once it goes, those whose KV state its blocks hold.
    """

    key: str
    size: int
    chain: list[Node]
    tokens: Sequence[int] = ()


def tokens_held(num_blocks: int, block_bytes: int, kv: KvShape) -> int:
    """How many tokens of one sequence of this architecture so many blocks hold."""
    return max(num_blocks - kv.state_blocks(block_bytes), 0) * kv.tokens_per_block(block_bytes)


class KVPool:
    """Hands out blocks of a KV slab to sequences and takes them back. `reuses`: what they hold is remembered."""

    def __init__(self, buffer: Buffer, block_bytes: int, reuses: bool = True) -> None:
        self.buffer, self.block_bytes, self.reuses = buffer, block_bytes, reuses
        self.num_blocks = buffer.size_bytes // block_bytes
        if self.num_blocks == 0:
            levers = ("a larger KV budget", "smaller KV blocks")
            raise CapacityError("kv", "one KV block", block_bytes, buffer.size_bytes, levers)
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._owned: dict[int, tuple[int, ...]] = {}
        self._reserved: dict[int, int] = {}  # owners whose blocks are not chosen yet
        self._promised = 0  # to owners, and what retires
        self._sharing: dict[int, _Sharing] = {}
        self._prefixes = Prefixes()
        self._uses: list[tuple[Event, Collection[int]]] = []
        self._retiring: list[tuple[Event, tuple[int, ...], _Sharing | None]] = []
        self._per_block: dict[int, tuple[KvShape, int]] = {}  # by identity: asked for with every request and batch

    @property
    def free_blocks(self) -> int:
        """Blocks that can be handed out now: free and unused ones, and those that are spared because owners share.

        So a shared block counts for each of its owners, and whether another one fits does not depend on who shares.
        """
        return self.num_blocks - self._promised

    @property
    def cached_blocks(self) -> int:
        """Blocks that nobody uses and whose tokens are known."""
        return self._prefixes.unused

    @property
    def used_blocks(self) -> int:
        """Blocks that somebody reads or writes, a shared one counted once."""
        return self.num_blocks - len(self._free) - self._prefixes.unused

    @property
    def reserved(self) -> int:
        """Owners that have not begun."""
        return len(self._reserved)

    def tokens_per_block(self, kv: KvShape) -> int:
        """How many tokens of this architecture a block holds."""
        known = self._per_block.get(id(kv))
        if known is None:
            if len(self._per_block) >= MAX_SHAPES:
                self._per_block.clear()  # those that are asked for again come back
            known = self._per_block[id(kv)] = kv, kv.tokens_per_block(self.block_bytes)
        return known[1]

    def blocks_for(self, tokens: int, kv: KvShape) -> int:
        """How many blocks a sequence of `tokens` tokens needs, its recurrent state included.

        Raises CapacityError when one token, or a unit of state, is larger than a block.
        """
        per_block = self.tokens_per_block(kv)
        if per_block == 0:
            least = kv.least_block_bytes
            levers = (f"raise the KV block size to at least {least} bytes",)
            what = "the KV state of one token" if least == kv.bytes_per_token else "one unit of recurrent state"
            raise CapacityError("kv", what, least, self.block_bytes, levers)
        return self.state_blocks(kv) - (-tokens // per_block)

    def state_blocks(self, kv: KvShape) -> int:
        """How many blocks at the beginning of a sequence's hold its recurrent state."""
        return kv.state_blocks(self.block_bytes)

    def tokens_held(self, kv: KvShape) -> int:
        """How many tokens of one sequence the whole pool holds."""
        return tokens_held(self.num_blocks, self.block_bytes, kv)

    def check_fits(self, tokens: int, prompt_tokens: int, kv: KvShape, where: str) -> int:
        """The blocks that `tokens` tokens need, the prompt's among them. Raises OversizeError: more than there are."""
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

    def lack(self, blocks: int, whose: str, where: str) -> CapacityError:
        """That there are not so many free blocks for a sequence of this expert, for who asked at `where`."""
        size, free = self.block_bytes, self.free_blocks
        levers = (f"set --kv to at least {(self.num_blocks + blocks - free) * size} B", "ask with a smaller max_tokens")
        return CapacityError(where, f"the KV state of {whose}", blocks * size, free * size, levers)

    def allocate(self, owner: int, blocks: int) -> tuple[int, ...]:
        """Give `blocks` blocks to a new owner, of its own. The caller has checked `free_blocks`."""
        self._promise(owner, blocks)
        taken = self._owned[owner] = tuple(self._take(blocks))
        return taken

    def reserve(self, owner: int, blocks: int) -> None:
        """Promise `blocks` blocks to a new owner. Which ones, `begin` says. The caller has checked `free_blocks`."""
        self._promise(owner, blocks)
        self._reserved[owner] = blocks

    def begin(self, owner: int, key: str, tokens: Sequence[int], kv: KvShape) -> int:
        """Choose a reserved owner's blocks; returns for how many of its tokens they hold the KV state already.

        These are whole blocks that an owner of the same key computed for the same tokens at the same places. Never all:
        the last token is computed again, for what follows it.
        """
        size = self.tokens_per_block(kv)
        chain = self._prefixes.find(key, tokens, size)
        self._prefixes.take(chain)
        self._sharing[owner] = _Sharing(key, size, chain)
        own = self._take(self._reserved.pop(owner) - len(chain))
        self._owned[owner] = (*[node.block for node in chain], *own)
        return len(chain) * size

    def known(self, key: str, tokens: Sequence[int], kv: KvShape) -> int:
        """For how many of its tokens an owner would find the KV state, if it began now."""
        size = self.tokens_per_block(kv)
        return len(self._prefixes.find(key, tokens, size)) * size

    def keep(self, owner: int, tokens: Sequence[int]) -> None:
        """Let others share what a running owner has computed: the state of these tokens, whose steps are finished."""
        sharing = self._sharing.get(owner)
        if sharing is not None:
            self._prefixes.extend(sharing.chain, sharing.key, tokens, sharing.size, self._owned[owner])

    def forget(self, owner: int) -> None:
        """Let nobody share what an owner has computed or was given, nor what others computed behind that."""
        sharing = self._sharing.get(owner)
        if sharing is not None:
            self._free += self._prefixes.forget(sharing.chain[:1])

    def forget_all(self, key: str) -> None:
        """Let nobody share what was computed by owners of this key until now."""
        self._free += self._prefixes.forget(self._prefixes.of(key))

    def forget_unused(self) -> bool:
        """Forget what nobody uses; whether nothing is left in any block then."""
        self._free += self._prefixes.evict(self._prefixes.unused)
        return not self.used_blocks

    def blocks(self, owner: int) -> tuple[int, ...]:
        """The owner's blocks, in the order of their tokens."""
        return self._owned[owner]

    def use(self, owners: Collection[int], event: Event) -> None:
        """Say that a step which reads or writes the blocks of these owners is done with `event`."""
        self._uses.append((event, owners))

    def finished(self, event: Event) -> None:
        """Say that a step is done, which a poll would find out too."""
        self._uses = [use for use in self._uses if use[0] is not event]

    def free(self, owner: int, tokens: Sequence[int] = ()) -> None:
        """Take the owner's blocks back, as soon as the last step that uses them is finished.

        Where it shares, others may then share those that hold the KV state of these tokens, whose steps are finished.
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
        """Raise ValueError unless every block has exactly one place, is known once, and is used by whom it says."""
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
            if node.uses != users:
                raise ValueError(f"KV block {node.block} counts {node.uses} users but has {users}")
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
        """Blocks to write into. There are so many, for nobody owns more than he was promised."""
        free = self._free
        if count > len(free):
            free += self._prefixes.evict(count - len(free))
        return [free.pop() for _ in range(count)]

    def _release(self, blocks: tuple[int, ...], sharing: _Sharing | None) -> None:
        self._promised -= len(blocks)
        if sharing is None:
            self._free.extend(reversed(blocks))
        else:
            self._free += self._prefixes.leave(sharing.chain, sharing.key, sharing.tokens, sharing.size, blocks)
