"""Prefix cache: KV blocks whose tokens are known, as one tree per key, shared by sequences with equal prefixes.

    key a   [5 9 2 7] -- [1 1 3 0] -- [4 4 8 6]     a node: one whole block, its tokens, its number of users
                     \\- [2 0 0 1]                  no users: may be evicted, least recently used first

A user of a node uses its ancestors too, and releases its nodes from the last to the first, so the least recently used
unused node is always a leaf.
Knows nothing about requests, events or what the bytes mean.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import TypeAlias

Level: TypeAlias = "dict[tuple[int, ...], Node]"
"""The children of one node, or the roots of a key, by their tokens: compared token by token, not by a digest."""


class Node:
    """A whole block with the KV state of `tokens`, which follow those of its ancestors. `known`: still in the tree.
    `level`: the one that holds it.
    """

    __slots__ = ("block", "children", "known", "level", "num_users", "tokens")

    def __init__(self, block: int, tokens: tuple[int, ...], level: Level, num_users: int) -> None:
        self.block, self.tokens, self.level, self.num_users = block, tokens, level, num_users
        self.children: Level = {}
        self.known = True
        level[tokens] = self


class PrefixTrees:
    """The trees, and the eviction order of unused nodes."""

    def __init__(self) -> None:
        self._roots: dict[str, Level] = {}
        self._unused: OrderedDict[Node, None] = OrderedDict()

    @property
    def num_unused(self) -> int:
        """How many known blocks have no user."""
        return len(self._unused)

    def find(self, key: str, tokens: Sequence[int], size: int) -> list[Node]:
        """The longest chain of nodes that is a proper prefix of these tokens; a block holds `size` tokens."""
        chain: list[Node] = []
        level = self._roots.get(key, {})
        for number in range((len(tokens) - 1) // size):
            node = level.get(_block_tokens(tokens, number, size))
            if node is None:
                break
            chain.append(node)
            level = node.children
        return chain

    def acquire(self, chain: Sequence[Node]) -> None:
        """Add a user to this chain."""
        for node in chain:
            if node.num_users == 0:
                del self._unused[node]
            node.num_users += 1

    def extend(self, chain: list[Node], key: str, tokens: Sequence[int], size: int, blocks: Sequence[int]) -> None:
        """Make a user's next blocks known, as far as these tokens fill them.

        Stops where another block is already known for the same tokens: nodes below that one would have users that do
        not use their ancestors.
        """
        level = self._level_below(chain, key)
        if level is None:
            return
        for number in range(len(chain), len(tokens) // size):
            part = _block_tokens(tokens, number, size)
            if part in level:
                return
            chain.append(Node(blocks[number], part, level, num_users=1))
            level = chain[-1].children

    def release(
        self, chain: Sequence[Node], key: str, tokens: Sequence[int], size: int, blocks: Sequence[int]
    ) -> list[int]:
        """Remove a user from its chain, and make those of its further blocks known that these tokens fill.

        Returns the blocks to free: partly filled ones, duplicates of known ones, and forgotten ones without users.
        """
        following, own = self._fill(chain, key, tokens, size, blocks), blocks[len(chain) :]
        free = [block for block, node in zip(own, following, strict=False) if node.block != block]
        free += own[len(following) :]
        for node in reversed(following):
            if node.num_users == 0:
                self._make_evictable(node)
        for node in reversed(chain):
            node.num_users -= 1
            if node.num_users == 0 and node.known:
                self._make_evictable(node)
            elif node.num_users == 0:
                free.append(node.block)
        return free

    def evict(self, count: int) -> list[int]:
        """Forget the `count` least recently used unused nodes; returns their blocks."""
        blocks = []
        for _ in range(count):
            node, _none = self._unused.popitem(last=False)
            del node.level[node.tokens]
            node.known = False
            blocks.append(node.block)
        return blocks

    def forget(self, first: Collection[Node]) -> list[int]:
        """Forget these nodes and their descendants; returns the blocks of those without users."""
        blocks = []
        for node in [found for top in first if top.known for found in (top, *_nodes_in(top.children))]:
            del node.level[node.tokens]
            node.known = False
            if node.num_users == 0:
                del self._unused[node]
                blocks.append(node.block)
        return blocks

    def roots(self, key: str) -> tuple[Node, ...]:
        """The roots of a key."""
        return tuple(self._roots.get(key, {}).values())

    def nodes(self) -> list[Node]:
        """All known nodes."""
        return [node for level in self._roots.values() for node in _nodes_in(level)]

    def check_order(self) -> None:
        """Raise ValueError unless exactly the unused nodes are queued for eviction, each after all its descendants."""
        nodes = self.nodes()
        places = {node: place for place, node in enumerate(self._unused)}
        if set(places) != {node for node in nodes if node.num_users == 0}:
            raise ValueError(f"{len(places)} KV blocks wait, not just those of {len(nodes)} known ones that are unused")
        for node, place in places.items():
            if any(after.num_users or places[after] > place for after in node.children.values()):
                raise ValueError(f"KV block {node.block} would go before what is behind it")

    def _fill(
        self, chain: Sequence[Node], key: str, tokens: Sequence[int], size: int, blocks: Sequence[int]
    ) -> list[Node]:
        """The nodes for the tokens after a chain; missing ones are made of these blocks."""
        found: list[Node] = []
        level = self._level_below(chain, key)
        if level is None:
            return found
        for number in range(len(chain), len(tokens) // size):
            part = _block_tokens(tokens, number, size)
            node = level.get(part)
            if node is None:
                node = Node(blocks[number], part, level, num_users=0)
            found.append(node)
            level = node.children
        return found

    def _make_evictable(self, node: Node) -> None:
        self._unused[node] = None
        self._unused.move_to_end(node)

    def _level_below(self, chain: Sequence[Node], key: str) -> Level | None:
        """The level below a chain; None if the chain was forgotten."""
        if not chain:
            return self._roots.setdefault(key, {})
        return chain[-1].children if chain[-1].known else None


def _block_tokens(tokens: Sequence[int], number: int, size: int) -> tuple[int, ...]:
    """The tokens of block `number`."""
    return tuple(tokens[number * size : (number + 1) * size])


def _nodes_in(level: Level) -> Iterator[Node]:
    """The nodes of a level and all their descendants. Iterative: chains can be longer than Python's recursion limit."""
    stack = list(level.values())
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()
