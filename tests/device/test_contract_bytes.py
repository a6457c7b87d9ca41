"""What every device must keep of bytes: extents, copies, fetches, and memory that is reserved.

Knows nothing about which device it is given; what only devices with bytes can show asks `synthetic()`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from tests.device.contract import broken_range, needs_bytes, prompt_rows
from tests.device.programs import Desk, loaded, rows, tiny_graph, write_weights

from coterie.checkpoint.layout import BLOCK_BYTES, FileIdentity, FileRange
from coterie.core.errors import CapacityError, TransferError
from coterie.core.units import format_bytes
from coterie.device import Shared, Variants


@pytest.mark.parametrize("every", [1, 2, 3])
def test_weights_may_lie_in_two_extents(every, desk, on_cpu, tmp_path):
    """Every second or third weight, or all, are in a second extent, with other numbers: as in a file of just these."""
    step = rows([([3, 14, 15], 0), ([9, 26], 0), ([5, 35, 8, 9], 0), ([7], 0)])
    names, path = desk.exe.program.weights, tmp_path / "mixed.weights"
    other = write_weights(tmp_path / "other.weights", desk.graph, seed=7)
    theirs = (tmp_path / "other.weights").read_bytes()
    mixed = bytearray(Path(desk.layout.ranges[0].source.path).read_bytes())
    places = tuple(range(0, len(names), every))
    for tensor in [other.tensors[names[place]] for place in places]:
        start = BLOCK_BYTES + tensor.offset
        end = start + tensor.dtype.tensor_bytes(tensor.shape)
        mixed[start:end] = theirs[start:end]
    path.write_bytes(mixed)
    loaded(desk)
    second = loaded(Desk(desk.device, other))
    run = desk.device.run(desk.exe, replace(desk.binding(step), shared=Shared(second.weights, places)))
    found = desk.tokens(run)
    assert len(found[0]) == 4
    if not desk.device.synthetic():
        identity = FileIdentity.of(path.stat())
        ranges = [replace(r, source=replace(r.source, path=str(path), identity=identity)) for r in desk.layout.ranges]
        alone = loaded(Desk(on_cpu.device, replace(desk.layout, ranges=tuple(ranges))))
        assert found == alone.tokens(alone.run(step)) != desk.tokens(desk.run(step))


def test_memory_that_was_given_back_is_filled_again_and_what_lies_beside_it_stays(desk):
    """Whatever a device does with it, pieces of less than a page, and of no byte, among them."""
    loaded(desk)
    before = desk.tokens(desk.run(prompt_rows()))
    beside = desk.device.reserve(desk.device.spec.run_tier, 5 * BLOCK_BYTES)
    for offset, size in ((0, 0), (1, 100), (BLOCK_BYTES - 1, BLOCK_BYTES + 2), (0, 5 * BLOCK_BYTES)):
        desk.device.give_back(beside.view(offset, size))
    assert desk.tokens(desk.run(prompt_rows())) == before
    desk.device.give_back(desk.weights)
    loaded(desk)
    assert desk.tokens(desk.run(prompt_rows())) == before


def test_the_second_extent_must_have_what_is_there(desk):
    needs_bytes(desk.device)
    loaded(desk)
    short = desk.weights.view(0, 4096)
    with pytest.raises(ValueError, match=r"weights reach \d+ but their extent has 4096 bytes"):
        desk.wait(desk.device.run(desk.exe, replace(desk.binding(prompt_rows()), shared=Shared(short, (3,)))))
    with pytest.raises(ValueError, match="weights 2 to 99 are shared but there are"):
        desk.device.run(desk.exe, replace(desk.binding(prompt_rows()), shared=Shared(desk.weights, (2, 99))))


@pytest.fixture
def variants(desk, tmp_path):
    """Three desks of one device whose output and down projections differ; the first one's other weights are shared."""
    loaded(desk)
    names = desk.exe.program.weights
    shared = Shared(desk.weights, tuple(i for i, name in enumerate(names) if not name.endswith((".o", ".down"))))
    layouts = [write_weights(tmp_path / f"{seed}.weights", desk.graph, seed=seed) for seed in (3, 4)]
    return shared, [desk, *(loaded(Desk(desk.device, layout)) for layout in layouts)]


def mixed(shared, desks, step, expert_B):
    """A binding of the first desk with these sequences of others; alone where all are of one."""
    offsets = [desk.layout.offsets(desk.exe.program.weights) for desk in desks]
    theirs = desks[0].layout.offsets(desks[0].exe.program.weights)
    places = [tuple(theirs[i] if i in shared.indices else at for i, at in enumerate(own)) for own in offsets]
    first = replace(
        desks[0].binding(step), weights=desks[expert_B[0]].weights, offsets=places[expert_B[0]], shared=shared
    )
    if len(set(expert_B)) == 1:
        return first
    order = list(dict.fromkeys(expert_B))
    others = [desks[number].weights for number in order[1:]], [places[number] for number in order[1:]]
    return replace(first, variants=Variants(*map(tuple, others), [order.index(number) for number in expert_B]))


@pytest.mark.parametrize("expert_B", [(0, 1, 2, 1), (2, 0, 0, 2), (1, 1, 2, 2)])
def test_sequences_of_one_run_may_have_weights_of_their_own(expert_B, variants):
    """Of several extents, prompts and decode beside each other: each token as in a run of its own weights alone."""
    shared, desks = variants
    chunks = [([3, 14, 15], 0), ([9], 0), ([5, 35, 8, 9, 7, 9, 3], 0), ([7, 21], 0)]
    step, device, exe = rows(chunks, blocks_per_sequence=4), desks[0].device, desks[0].exe
    if not exe.mixes(shared.indices):
        with pytest.raises(ValueError, match="does not mix sequences of different weights"):
            device.run(exe, mixed(shared, desks, step, expert_B))
        return
    assert not exe.mixes(())
    found = desks[0].tokens(device.run(exe, mixed(shared, desks, step, expert_B)))
    alone = [desks[0].tokens(device.run(exe, mixed(shared, desks, step, (number,) * 4)))[0] for number in range(3)]
    assert found == [[alone[number][row] for row, number in enumerate(expert_B)]]
    assert found == desks[0].tokens(device.run(exe, mixed(shared, desks, step, expert_B)))
    decode = rows([([token], len(chunk)) for token, (chunk, _) in zip(found[0], chunks, strict=True)])
    swapped = [(number + 1) % 3 for number in expert_B]  # the same sizes, other weights
    other = desks[0].tokens(device.run(exe, mixed(shared, desks, step, swapped)))
    assert other == [[alone[number][row] for row, number in enumerate(swapped)]]
    assert found == desks[0].tokens(device.run(exe, mixed(shared, desks, step, expert_B)))
    several = desks[0].tokens(device.run(exe, mixed(shared, desks, decode, expert_B), steps=3))
    device.run(exe, mixed(shared, desks, step, expert_B))
    first = desks[0].tokens(device.run(exe, mixed(shared, desks, decode, expert_B)))
    assert len(several) == 3
    assert first == several[:1]
    downs = [i for i, name in enumerate(exe.program.weights) if name.endswith(".down")]
    fewer = replace(shared, indices=(*shared.indices, *downs))  # of which less is their own, by the same program
    device.run(exe, mixed(shared, desks, step, expert_B))
    less = desks[0].tokens(device.run(exe, mixed(fewer, desks, step, expert_B)))[0]
    each = [desks[0].tokens(device.run(exe, mixed(fewer, desks, step, (number,) * 4)))[0] for number in range(3)]
    assert less == [each[number][row] for row, number in enumerate(expert_B)]
    if not device.synthetic():
        assert len({tuple(row) for row in alone}) == 3
        assert each != alone


def test_variants_may_come_to_the_same_memory_with_other_places(variants):
    """As when one goes and another comes whose file begins elsewhere; all of it must lie there."""
    shared, desks = variants
    device, exe = desks[0].device, desks[0].exe
    if device.synthetic() or not exe.mixes(shared.indices):
        pytest.skip("this device mixes none, or has no bytes")
    step = rows([([3, 14], 0), ([9], 0), ([5, 35, 8], 0), ([7], 0)])
    first = mixed(shared, desks, step, (0, 1, 1, 1))
    places, both = list(first.variants.offsets[0]), [exe.program.weights.index(f"layers.{i}.down") for i in (0, 1)]
    places[both[0]], places[both[1]] = places[both[1]], places[both[0]]
    later = replace(first, variants=replace(first.variants, offsets=(tuple(places),)))
    (before,), (after,) = (desks[0].tokens(device.run(exe, binding)) for binding in (first, later))
    alone = replace(mixed(shared, desks, step, (1,) * 4), offsets=tuple(places))
    assert after == [before[0], *desks[0].tokens(device.run(exe, alone))[0][1:]]
    assert after != before
    short = replace(first.variants, weights=(desks[1].weights.view(0, 4096),))
    with pytest.raises(ValueError, match=r"weights reach \d+ but their extent has 4096 bytes"):
        device.run(exe, replace(first, variants=short))


def test_variants_that_are_nobodys_are_refused(variants):
    shared, desks = variants
    if not desks[0].exe.mixes(shared.indices):
        pytest.skip("this device mixes none")
    step = rows([([3], 0), ([9], 0)])
    good = mixed(shared, desks, step, (0, 1))
    for expert_B in ([0, 2], [0, -1]):
        with pytest.raises(ValueError, match=r"sequences have the weights .* of 2"):
            desks[0].device.run(desks[0].exe, replace(good, variants=replace(good.variants, expert_B=expert_B)))
    with pytest.raises(ValueError, match="does not mix sequences of different weights"):
        desks[0].device.run(desks[0].exe, replace(good, shared=None))


def test_a_gate_for_no_stage_is_refused(desk):
    with pytest.raises(ValueError, match=r"layers\.9"):
        desk.run(prompt_rows(), gates={"layers.9": next(iter(desk.fetch().values()))})


def test_a_copy_moves_bytes(desk):
    loaded(desk)
    expected = desk.tokens(desk.run(prompt_rows()))
    twin = desk.device.reserve(desk.weights.tier, desk.weights.size_bytes)
    copied = desk.device.copy(twin, desk.weights)
    run = desk.device.run(desk.exe, desk.binding(prompt_rows(), twin), after=[copied])
    assert desk.tokens(run) == expected


def test_a_copy_of_parts_moves_those_and_no_others(desk):
    loaded(desk)
    expected = desk.tokens(desk.run(prompt_rows()))
    twin = desk.device.reserve(desk.weights.tier, desk.weights.size_bytes)
    blocks = [(at, 4096) for at in range(0, desk.weights.size_bytes, 4096)]
    given = blocks[1::2]
    odd = desk.device.copy(twin, desk.weights, parts=given)
    assert odd.label == f"copy {format_bytes(4096 * len(given))}"
    given.clear()  # which parts was said when the copy was asked for
    halves = desk.device.copy(twin, desk.weights, after=[odd], parts=blocks[::2])
    run = desk.device.run(desk.exe, desk.binding(prompt_rows(), twin), after=[halves])
    assert desk.tokens(run) == expected


def test_pieces_are_copied_one_by_one_behind_what_was_issued(desk):
    loaded(desk)
    expected = desk.tokens(desk.run(prompt_rows()))
    tier, ranges = desk.weights.tier, desk.layout.ranges
    twin = desk.device.reserve(tier, desk.weights.size_bytes)
    pieces = [(placed.offset, placed.source.size_bytes) for placed in ranges]
    first, count = twin.view(*pieces[0]), len(pieces)
    issued = [desk.device.copy(first, desk.weights.view(*pieces[0]))]
    desk.device.copy_all(twin, desk.weights, pieces, issued)
    assert [event.label for event in issued[1:]] == [f"copy {format_bytes(size)}" for _, size in pieces]
    assert {event.lane for event in issued} == {issued[0].lane}
    desk.wait(*issued)
    spans = [desk.device.span(event) for event in issued]
    assert all(before.end_s <= after.start_s for before, after in pairwise(spans))
    assert desk.tokens(desk.device.run(desk.exe, desk.binding(prompt_rows(), twin))) == expected
    desk.device.copy_all(twin, desk.weights, [], issued)
    assert len(issued) == 1 + count > 2


def test_pieces_behind_a_failure_fail_as_it_does(desk):
    tier = desk.device.spec.run_tier
    twin = desk.device.reserve(tier, desk.weights.size_bytes)
    pieces = [(placed.offset, placed.source.size_bytes) for placed in desk.layout.ranges]
    issued = [desk.device.fetch(twin.view(*pieces[0]), broken_range(desk.layout))]
    desk.device.copy_all(twin, desk.weights, pieces, issued)
    desk.wait(*issued)
    assert isinstance(desk.device.failure(issued[0]), TransferError)
    assert {id(desk.device.failure(event)) for event in issued} == {id(desk.device.failure(issued[0]))}
    for piece in ((desk.weights.size_bytes, 4096), (-4096, 8192)):
        with pytest.raises(ValueError, match="outside"):
            desk.device.copy_all(twin, desk.weights, [piece], [])


def test_a_copy_of_unequal_sizes_is_refused(desk):
    with pytest.raises(ValueError, match="equal"):
        desk.device.copy(desk.weights.view(0, 4096), desk.weights.view(0, 8192))


def test_a_view_outside_its_buffer_is_refused(desk):
    size = desk.weights.size_bytes
    for offset, length in ((0, size + 1), (size, 1), (-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="outside"):
            desk.weights.view(offset, length)


def test_a_fetch_into_too_small_a_buffer_is_refused(desk):
    source = desk.layout.ranges[-1].source
    with pytest.raises(ValueError, match="buffer"):
        desk.device.fetch(desk.weights.view(0, source.size_bytes - BLOCK_BYTES), source)


def test_a_missing_file_fails_the_fetch(desk):
    needs_bytes(desk.device)
    view = desk.weights.view(0, BLOCK_BYTES)
    event = desk.device.fetch(
        view, FileRange("/nonexistent/weights", BLOCK_BYTES, BLOCK_BYTES, FileIdentity(2 * BLOCK_BYTES))
    )
    desk.wait(event)
    assert isinstance(desk.device.failure(event), TransferError)
    assert "/nonexistent/weights" in str(desk.device.failure(event))


@pytest.mark.parametrize("change", ["touched", "truncated", "grown"])
def test_a_changed_file_fails_the_fetch(desk, tmp_path, change):
    needs_bytes(desk.device)
    path = tmp_path / "changing.weights"
    layout = write_weights(path, tiny_graph())
    stat = path.stat()
    if change == "touched":
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    else:
        os.truncate(path, stat.st_size + (4096 if change == "grown" else -4096))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    placed = layout.ranges[0]
    event = desk.device.fetch(desk.weights.view(0, placed.source.size_bytes), placed.source)
    desk.wait(event)
    assert isinstance(desk.device.failure(event), TransferError)


def test_reserving_too_much_is_refused_with_levers(device):
    tier = device.spec.tier(device.spec.run_tier)
    with pytest.raises(CapacityError) as caught:
        device.reserve(tier.name, tier.capacity_bytes + BLOCK_BYTES)
    assert caught.value.demand_bytes > caught.value.bound_bytes
    assert caught.value.levers
    assert tier.name in str(caught.value)


def test_reserved_memory_is_taken_away_from_what_is_left(device):
    capacity = device.spec.tier(device.spec.run_tier).capacity_bytes
    if capacity > 2**30:
        pytest.skip("touching half of a real machine's memory is not a unit test")
    device.reserve(device.spec.run_tier, capacity // 2 + BLOCK_BYTES)
    with pytest.raises(CapacityError):
        device.reserve(device.spec.run_tier, capacity // 2 + BLOCK_BYTES)
