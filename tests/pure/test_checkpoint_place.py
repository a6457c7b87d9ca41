"""Placement: reading the ranges in order puts every needed byte in place, each block once, each stage in time."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.checkpoint.folder import Checkpoint
from coterie.checkpoint.layout import BLOCK_BYTES, FileIdentity, aligned_end, aligned_starts
from coterie.checkpoint.place import place
from coterie.checkpoint.safetensors import Shard, TensorInfo
from coterie.core.dtypes import DType

STAGES = ("embed", "layers.0", "layers.1", "layers.2", "head")


@st.composite
def folders(draw):
    """A checkpoint of one to three shards with random tensor sizes, gaps and stages; some tensors are not needed."""
    tensors, stage_of, files = {}, {}, {}
    for number in range(draw(st.integers(1, 3))):
        sizes = draw(st.lists(st.one_of(st.integers(0, 40), st.integers(0, 20_000)), min_size=1, max_size=12))
        start = draw(st.integers(8, 9000))
        gaps = draw(st.lists(st.sampled_from([0, 0, 0, 1, 5000]), min_size=len(sizes), max_size=len(sizes)))
        size = start + sum(sizes) + sum(gaps)
        shard = Shard(f"shard-{number}", FileIdentity(size, 7))
        files[shard.path] = np.random.default_rng(number).bytes(size)
        at = start
        for i, (length, gap) in enumerate(zip(sizes, gaps, strict=True)):
            info = TensorInfo(f"t{number}.{i}", DType.U8, (length,), shard, at + gap)
            tensors[info.name] = info
            at += gap + length
            stage = draw(st.sampled_from((*STAGES, None)))
            if stage:
                stage_of[info.name] = stage
    return Checkpoint(Path(), {}, tensors), stage_of, files


def read(file, source):
    """What a device reads: the range, short by less than a block at the end of the file."""
    piece = file[source.offset : source.offset + source.size_bytes]
    assert source.size_bytes - len(piece) < BLOCK_BYTES
    return piece


@settings(max_examples=300, deadline=None)
@given(folders())
def test_reading_the_ranges_in_order(case):
    checkpoint, stage_of, files = case
    layout = place(checkpoint, stage_of, STAGES)
    extent = bytearray(layout.size_bytes)
    blocks, filled = set(), set()
    at = 0
    for stage in STAGES:
        while at < len(layout.ranges) and layout.ranges[at].stage == stage:
            placed = layout.ranges[at]
            source = placed.source
            assert source.offset % BLOCK_BYTES == source.size_bytes % BLOCK_BYTES == placed.offset % BLOCK_BYTES == 0
            assert source.identity.size_bytes == len(files[source.path])
            new = {(source.path, b) for b in range(source.offset // BLOCK_BYTES, _end(source) // BLOCK_BYTES)}
            room = set(range(placed.offset // BLOCK_BYTES, (placed.offset + source.size_bytes) // BLOCK_BYTES))
            assert not new & blocks, "a block is read twice"
            assert not room & filled, "two ranges land on one place"
            blocks |= new
            filled |= room
            piece = read(files[source.path], source)
            extent[placed.offset : placed.offset + len(piece)] = piece
            at += 1
        for name, first in stage_of.items():
            if STAGES.index(first) <= STAGES.index(stage):
                info, put = checkpoint.tensors[name], layout.tensors[name]
                wanted = files[info.shard.path][info.offset : info.offset + info.size_bytes]
                assert extent[put.offset : put.offset + info.size_bytes] == wanted, f"{name} is not complete at {stage}"
    assert at == len(layout.ranges), "ranges are not in stage order"
    assert blocks == _needed_blocks(checkpoint, stage_of)
    assert filled == set(range(len(filled))), "the extent has a hole"
    room = max(len(filled), -(-aligned_end(layout.spans) // BLOCK_BYTES))
    assert layout.size_bytes == room * BLOCK_BYTES, "the extent has room that nothing uses, aligned or not"
    assert layout.spans == tuple(
        sorted((t.offset, t.shape[0]) for name, t in layout.tensors.items() if checkpoint.tensors[name].size_bytes)
    )
    for name in stage_of:
        if checkpoint.tensors[name].size_bytes:
            assert layout.tensors[name].offset % BLOCK_BYTES == checkpoint.tensors[name].offset % BLOCK_BYTES


def _end(source):
    return source.offset + source.size_bytes


def _needed_blocks(checkpoint, stage_of):
    """Every block with a byte of a needed tensor, counted the slow way."""
    needed = set()
    for name in stage_of:
        info = checkpoint.tensors[name]
        blocks = np.arange(info.offset, info.offset + info.size_bytes) // BLOCK_BYTES  # of each byte
        needed |= {(info.shard.path, block) for block in np.unique(blocks).tolist()}
    return needed


def test_neighbours_of_one_stage_are_one_range():
    shard = Shard("file", FileIdentity(10 * BLOCK_BYTES))
    names = [f"t{i}" for i in range(8)]
    tensors = {
        name: TensorInfo(name, DType.U8, (BLOCK_BYTES,), shard, 100 + i * BLOCK_BYTES) for i, name in enumerate(names)
    }
    stage_of = dict.fromkeys(names[:5], "embed") | dict.fromkeys(names[5:], "layers.0")
    layout = place(Checkpoint(Path(), {}, tensors), stage_of, STAGES)
    assert [(r.source.offset, r.source.size_bytes, r.stage) for r in layout.ranges] == [
        (0, 6 * BLOCK_BYTES, "embed"),
        (6 * BLOCK_BYTES, 3 * BLOCK_BYTES, "layers.0"),
    ]
    assert layout.stages == ("embed", "layers.0")
    assert layout.tensors["t0"].offset == 100


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 90)), min_size=1, max_size=12), st.sampled_from([1, 2, 16])
)
def test_aligned_tensors_keep_their_order_and_do_not_touch(steps, align):
    """Gaps and sizes of tensors, in order."""
    spans, at = [], 0
    for gap, size in steps:
        spans.append((at + gap, size))
        at += gap + size
    starts = aligned_starts(spans, align)
    assert all(start % align == 0 for start in starts)
    for (offset, size), start, following in zip(spans, starts, [*starts[1:], aligned_end(spans, align)], strict=True):
        assert start >= offset - align + 1
        assert start + size <= following
    if len({offset % align for offset, _ in spans}) == 1 and all(size % align == 0 for _, size in spans):
        assert all(offset - start == spans[0][0] % align for (offset, _), start in zip(spans, starts, strict=True))
