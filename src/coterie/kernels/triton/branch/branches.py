"""Mixture-of-experts layers: which tokens take which branch, derived on the GPU from weights [T, E], 0 if not taken.

    one token      ids   [A]             its branches, in their order; slot s is the s-th
    up to four     slot s of a launch    the s-th of the branches that any token takes, and the tokens that take it
    more           ids   [T, A]          the branches of each token, in their order
                   first [E + 1]         where each branch's pairs begin                  a launch, a program per branch
                   pairs [T x A]         t x A + place, by branch and then by token

These lists are at the start of the scratch of all rows that read the weights. choose_branches leaves ids there, or a
launch makes them; the two rows that follow find them.

A pair is a token and the place of one branch among the A that it takes. Grids have the most slots or tiles that the
bucket's tokens can need, whatever they take: programs look up their own, and exit if there is none.
Knows nothing about what is computed with a branch's matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, unit_index, wait_for_previous
from coterie.kernels.triton.rows import Call, Matrix, aligned, operand_words
from coterie.kernels.triton.tiles import TensorCoreTile, power_of_two

# Instruction rows of all kernels that read branch matrices begin with the same words.
X, WEIGHTS, BRANCHES, Y, T = operand_words("branch_gate_up", "x", "weights", "branches", "y", "T")
LINES = "LINES"  # unused here, as weights cannot be prefetched: their branch is known too late
VALUES_OF_WARP = 256  # per row of routing weights
CHOOSER = "choose_branches"
READERS = ("branch_gate_up", "branch_gate_up_gelu", "branch_gate_up_clipped", "branch_down", "branch_down_add")


@triton.jit
def matrix_at(row, branch, TYPE: tl.constexpr):
    """A branch's matrix, from the table of addresses that the instruction row points to."""
    at = tl.load(pointer(row, BRANCHES, tl.int64) + branch)
    return tl.multiple_of(at.to(tl.pointer_type(TYPE)), 16)


@triton.jit
def slots_of(row, ids, E: tl.constexpr, TAKEN: tl.constexpr, M: tl.constexpr, WIDE: tl.constexpr):
    """The weights and counts that `slot_of` needs, and how many branches the few tokens take together."""
    if M == 1:
        weights, counts, count = ids, ids, integer(row, T) * TAKEN
    else:
        m, e = tl.arange(0, M), tl.arange(0, WIDE)
        mask = (m < integer(row, T))[:, None] & (e < E)[None, :]
        weights = tl.load(pointer(row, WEIGHTS, tl.float32) + m[:, None] * E + e[None, :], mask=mask, other=0.0)
        counts = tl.cumsum(tl.max((weights != 0).to(tl.int32), axis=0), axis=0)
        count = tl.max(counts, axis=0)
    return weights, counts, count


@triton.jit
def slot_of(row, weights, counts, slot, M: tl.constexpr, WIDE: tl.constexpr):
    """The `slot`-th branch that is taken; each token's weight for it and its place among the token's branches [M].

    The weight is 0 for tokens that do not take it.
    """
    if M == 1:
        branch = tl.load(weights + slot)
        none = tl.zeros([M], tl.int32)
        weight, place = tl.load(pointer(row, WEIGHTS, tl.float32) + branch + none), slot + none
    else:
        e = tl.arange(0, WIDE)
        branch = tl.sum((counts <= slot).to(tl.int32), axis=0)
        weight = tl.sum(tl.where((e == branch)[None, :], weights, 0.0), axis=1)
        place = tl.sum(tl.where((e < branch)[None, :], (weights != 0).to(tl.int32), 0), axis=1)
    return branch, weight, place


@triton.jit
def store_ids(ids, t, taken, TAKEN: tl.constexpr, WIDE: tl.constexpr):
    """Store the ids of the branches that a token takes; `taken` is a mask [WIDE]."""
    place = tl.cumsum(taken.to(tl.int32), axis=0) - 1
    tl.store(as_int32(ids) + t * TAKEN + place, tl.arange(0, WIDE), mask=taken & (place < TAKEN))


@triton.jit
def as_int32(scratch):
    """Scratch, which kernels get as float32, as int32."""
    return scratch.to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def _list(row, ids, E: tl.constexpr, TAKEN: tl.constexpr, WIDE: tl.constexpr, WHEN: tl.constexpr, unit=None):
    """ids of one token's branches, in order."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    t = unit_index(unit, 0)
    if t < integer(row, T):
        e = tl.arange(0, WIDE)
        weights = pointer(row, WEIGHTS, tl.float32) + t.to(tl.int64) * E
        store_ids(ids, t, tl.load(weights + e, mask=e < E, other=0.0) != 0, TAKEN, WIDE)


@triton.jit
def _group(row, ids, first, pairs, E: tl.constexpr, TAKEN: tl.constexpr, STEP: tl.constexpr, WHEN: tl.constexpr):
    """The pairs of one branch, after those of all branches before it. A program per branch."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    e, ids = tl.program_id(0), as_int32(ids)
    count = integer(row, T) * TAKEN
    below, mine = 0, 0
    for start in tl.range(0, count, STEP):
        i = start + tl.arange(0, STEP)
        each = tl.load(ids + i, mask=i < count, other=E)
        below += tl.sum((each < e).to(tl.int32), axis=0)
        mine += tl.sum((each == e).to(tl.int32), axis=0)
    tl.store(first + e, below)
    if e == E - 1:
        tl.store(first + E, below + mine)
    for start in tl.range(0, count, STEP):
        i = start + tl.arange(0, STEP)
        here = (tl.load(ids + i, mask=i < count, other=E) == e).to(tl.int32)
        at = below + tl.cumsum(here, axis=0) - 1
        tl.store(pairs + at, i, mask=here != 0)
        below += tl.sum(here, axis=0)


@triton.jit
def tile_of(first, pairs, tile, E: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr):
    """The branch of a tile of pairs, E or more beyond the last tile; its pairs, and their mask.

    Each branch has as many tiles as its pairs fill, after those of the branches before it.
    """
    e = tl.arange(0, WIDE)
    begins = tl.load(first + e, mask=e < E, other=0)
    tiles = tl.cdiv(tl.load(first + e + 1, mask=e < E, other=0) - begins, TOKENS)
    branch = tl.sum((tl.cumsum(tiles, axis=0) <= tile).to(tl.int32), axis=0)
    within = tile - tl.sum(tl.where(e < branch, tiles, 0), axis=0)
    at = tl.sum(tl.where(e == branch, begins, 0), axis=0) + within * TOKENS + tl.arange(0, TOKENS)
    there = at < tl.load(first + tl.minimum(branch + 1, E))
    return branch, tl.load(pairs + at, mask=there, other=0), there


@dataclass(frozen=True, slots=True)
class Sizes:
    """Number of branches, branches per token, and the most tokens, for which grids are made."""

    E: int
    taken: int
    tokens: int

    @staticmethod
    def of(call: Call) -> Sizes:
        """The sizes of a call."""
        return Sizes(call.integer("E"), call.integer("taken"), call.bucket.tokens)

    @property
    def pairs(self) -> int:
        """Most (token, branch) pairs."""
        return self.tokens * self.taken

    @property
    def slots(self) -> int:
        """Most branches that all tokens together may take."""
        return min(self.E, self.pairs)

    def tiles(self, tokens: int) -> int:
        """Most tiles of this many pairs: each branch may have a tile with a single pair."""
        return (self.pairs + self.slots * (tokens - 1)) // tokens

    @property
    def constants(self) -> dict[str, int]:
        """Compile-time parameters."""
        return {"E": self.E, "WIDE": power_of_two(self.E), "TAKEN": self.taken}

    @property
    def list_bytes(self) -> int:
        """Scratch of the lists, at its start."""
        return 2 * aligned(4 * self.pairs) + aligned(4 * (self.E + 1))


def ids_of(call: Call) -> torch.Tensor:
    """Where the ids are; launches the kernel that lists them, unless an earlier row did."""
    sizes = Sizes.of(call)
    ids = call.scratch_as(tl.float32, sizes.pairs)
    if not _has_lists_from(call, (CHOOSER, *READERS)):
        wide = power_of_two(sizes.E)
        warps = min(max(wide // VALUES_OF_WARP, 1), 8)
        call.launch(_list, (sizes.tokens,), call.row, ids, **sizes.constants, num_warps=warps)
    return ids


def pairs_of(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Where `first` and `pairs` are; launches the kernel that makes them, unless the previous row did."""
    sizes, ids = Sizes.of(call), ids_of(call)
    first_at = aligned(4 * sizes.pairs)
    pairs_at = first_at + aligned(4 * (sizes.E + 1))
    first = call.scratch_as(tl.float32, sizes.E + 1, first_at).view(torch.int32)
    pairs = call.scratch_as(tl.float32, sizes.pairs, pairs_at).view(torch.int32)
    if not _has_lists_from(call, READERS):
        step = call.tiles.elements  # for few pairs too, so that one kernel serves all steps
        call.launch(_group, (sizes.E,), call.row, ids, first, pairs, E=sizes.E, TAKEN=sizes.taken, STEP=step)
    return first, pairs


def chosen_ids(call: Call) -> torch.Tensor | None:
    """Where choose_branches leaves the ids; None if the next row does not read its weights."""
    after, count = call.next, call.bucket.tokens * call.integer("top_k")
    if after is None or not _share_weights(call, after):
        return None
    return call.scratch_as(tl.float32, count)


def chosen_bytes(call: Call) -> int:
    """Scratch for these ids."""
    leaves = call.next is not None and _share_weights(call, call.next)
    return 4 * call.bucket.tokens * call.integer("top_k") if leaves else 0


def _has_lists_from(call: Call, by: Sequence[str]) -> bool:
    """Whether the previous row is one of `by` and has left its lists."""
    return call.previous is not None and call.previous.name in by and _share_weights(call.previous, call)


def _share_weights(first: Call, then: Call) -> bool:
    """Whether two consecutive rows use the same routing weights."""
    if then.name not in READERS:
        return False
    weights, taken = ("y", "top_k") if first.name == CHOOSER else ("weights", "taken")
    alike = first.integer("E") == then.integer("E") and first.integer(taken) == then.integer("taken")
    return alike and first.integer(weights) == then.integer("weights")


def few_constants(call: Call, matrix: Matrix, rows: int, least_rows: int) -> dict[str, object]:
    """Compile-time parameters of a kernel that multiplies few tokens by `rows` rows of each branch's matrix."""
    sizes = Sizes.of(call)
    few = call.tiles.few(rows * sizes.slots, matrix.K, sizes.tokens, matrix.group, matrix.is_wide, least_rows)
    constants = few.for_row(matrix.COLUMNS, matrix.group).constants(sizes.tokens, matrix.group)
    return {name: value for name, value in constants.items() if name != LINES}


def many_tile(call: Call, matrix: Matrix) -> tuple[TensorCoreTile, dict[str, object]]:
    """Tile of a kernel that multiplies many tokens, and its compile-time parameters."""
    sizes = Sizes.of(call)
    many = call.tiles.of_branches(sizes.pairs // sizes.E, matrix.group, matrix.is_wide)
    tile = {"ROWS": many.rows, "TOKENS": many.tokens, "STEP": many.columns, "DOT": matrix.dot_type}
    return many, {**tile, "num_warps": many.warps, "num_stages": many.stages}
