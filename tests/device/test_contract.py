"""What every device must keep, real or modelled: events, lanes, gates, failures, time, bytes and tokens.

Knows nothing about which device it is given; what only devices with bytes can show asks `synthetic()`.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests.device.devices import BROKEN
from tests.device.programs import Desk, V, loaded, rows, tiny_graph, write_weights

from coterie.checkpoint.layout import BLOCK_BYTES, FileIdentity, FileRange
from coterie.core.errors import CapacityError, TransferError, UnsupportedError
from coterie.core.units import format_bytes
from coterie.device import Fellows, Sampling, Shared, wait_for
from coterie.graph.compile import compile_graph
from coterie.graph.sampling import draw

PROMPT = [3, 14, 15, 9, 26]
WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)


def prompt_rows(**options):
    return rows([(PROMPT, 0)], **options)


class Early:
    """Waits that end although nothing has: as where a device has other things to tell."""

    def __init__(self, device):
        self.device, self.waits = device, 0

    def done(self, event):
        return self.device.done(event)

    def wait_any(self, events, until=None):
        self.waits += 1
        if self.waits % 3 == 0:
            self.device.wait_any(events, until)


def broken_range(layout):
    return dataclasses.replace(layout.ranges[0].source, path=f"/nonexistent/{BROKEN}.weights")


def needs_bytes(device):
    if device.synthetic():
        pytest.skip("this device has no bytes")


def test_a_finished_event_stays_finished(desk):
    gates = desk.fetch()
    run = desk.run(prompt_rows(), gates=gates)
    desk.wait(run)
    spans = [desk.device.span(event) for event in (*gates.values(), run)]
    later = desk.run(prompt_rows())
    for event, span in zip((*gates.values(), run), spans, strict=True):
        assert desk.device.done(event)
        assert desk.device.failure(event) is None
        assert desk.device.span(event) == span
    desk.wait(later)


def test_work_on_one_lane_is_done_in_order(desk):
    fetches = [*desk.fetch().values(), *desk.fetch().values()]
    desk.wait(fetches[-1])
    assert all(desk.device.done(event) for event in fetches)
    spans = [desk.device.span(event) for event in fetches]
    assert len({event.lane for event in fetches}) == 1
    for first, second in pairwise(spans):
        assert first.start_s <= first.end_s <= second.start_s <= second.end_s


def test_runs_are_done_in_order(desk):
    loaded(desk)
    runs = [desk.run(prompt_rows()) for _ in range(3)]
    desk.wait(runs[-1])
    spans = [desk.device.span(run) for run in runs]
    assert spans[0].end_s <= spans[1].start_s
    assert spans[1].end_s <= spans[2].start_s
    assert {run.lane for run in runs} == {"compute"}


def test_after_is_awaited(desk):
    fetches = list(desk.fetch().values())
    run = desk.run(prompt_rows(), after=iter(fetches))
    desk.wait(run)
    assert desk.device.span(run).start_s >= max(desk.device.span(event).end_s for event in fetches)


def test_a_run_is_not_done_before_its_gates(desk):
    gates = desk.fetch()
    run = desk.run(prompt_rows(), gates=gates)
    finished = False
    while not finished:
        finished = desk.device.done(run)
        assert not finished or all(desk.device.done(gate) for gate in gates.values())
        desk.device.wait_any([run], until=desk.device.now() + 1e-4)
    assert desk.device.span(run).end_s >= max(desk.device.span(gate).end_s for gate in gates.values())


def test_gated_tokens_equal_ungated_tokens(desk):
    cold = desk.tokens(desk.run(prompt_rows(), gates=desk.fetch()))
    assert cold == desk.tokens(desk.run(prompt_rows()))


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


def test_the_second_extent_must_have_what_is_there(desk):
    needs_bytes(desk.device)
    loaded(desk)
    short = desk.weights.view(0, 4096)
    with pytest.raises(ValueError, match=r"weights reach \d+ but their extent has 4096 bytes"):
        desk.wait(desk.device.run(desk.exe, replace(desk.binding(prompt_rows()), shared=Shared(short, (3,)))))
    with pytest.raises(ValueError, match="weights 2 to 99 are shared but there are"):
        desk.device.run(desk.exe, replace(desk.binding(prompt_rows()), shared=Shared(desk.weights, (2, 99))))


@pytest.fixture
def fellows(desk, tmp_path):
    """Three desks of one device whose output and down projections differ; the first one's other weights are shared."""
    loaded(desk)
    names = desk.exe.program.weights
    shared = Shared(desk.weights, tuple(i for i, name in enumerate(names) if not name.endswith((".o", ".down"))))
    layouts = [write_weights(tmp_path / f"{seed}.weights", desk.graph, seed=seed) for seed in (3, 4)]
    return shared, [desk, *(loaded(Desk(desk.device, layout)) for layout in layouts)]


def mixed(shared, desks, step, of_B):
    """A binding of the first desk with these sequences of others; alone where all are of one."""
    offsets = [desk.layout.offsets(desk.exe.program.weights) for desk in desks]
    theirs = desks[0].layout.offsets(desks[0].exe.program.weights)
    places = [tuple(theirs[i] if i in shared.places else at for i, at in enumerate(own)) for own in offsets]
    first = replace(desks[0].binding(step), weights=desks[of_B[0]].weights, offsets=places[of_B[0]], shared=shared)
    if len(set(of_B)) == 1:
        return first
    order = list(dict.fromkeys(of_B))
    others = [desks[number].weights for number in order[1:]], [places[number] for number in order[1:]]
    return replace(first, fellows=Fellows(*map(tuple, others), [order.index(number) for number in of_B]))


@pytest.mark.parametrize("of_B", [(0, 1, 2, 1), (2, 0, 0, 2), (1, 1, 2, 2)])
def test_sequences_of_one_run_may_have_weights_of_their_own(of_B, fellows):
    """Of several extents, prompts and decode beside each other: each token as in a run of its own weights alone."""
    shared, desks = fellows
    chunks = [([3, 14, 15], 0), ([9], 0), ([5, 35, 8, 9, 7, 9, 3], 0), ([7, 21], 0)]
    step, device, exe = rows(chunks, blocks_per_sequence=4), desks[0].device, desks[0].exe
    if not exe.mixes(shared.places):
        with pytest.raises(ValueError, match="does not mix sequences of different weights"):
            device.run(exe, mixed(shared, desks, step, of_B))
        return
    assert not exe.mixes(())
    found = desks[0].tokens(device.run(exe, mixed(shared, desks, step, of_B)))
    alone = [desks[0].tokens(device.run(exe, mixed(shared, desks, step, (number,) * 4)))[0] for number in range(3)]
    assert found == [[alone[number][row] for row, number in enumerate(of_B)]]
    assert found == desks[0].tokens(device.run(exe, mixed(shared, desks, step, of_B)))
    decode = rows([([token], len(chunk)) for token, (chunk, _) in zip(found[0], chunks, strict=True)])
    swapped = [(number + 1) % 3 for number in of_B]  # the same sizes, other weights
    other = desks[0].tokens(device.run(exe, mixed(shared, desks, step, swapped)))
    assert other == [[alone[number][row] for row, number in enumerate(swapped)]]
    assert found == desks[0].tokens(device.run(exe, mixed(shared, desks, step, of_B)))
    several = desks[0].tokens(device.run(exe, mixed(shared, desks, decode, of_B), steps=3))
    device.run(exe, mixed(shared, desks, step, of_B))
    first = desks[0].tokens(device.run(exe, mixed(shared, desks, decode, of_B)))
    assert len(several) == 3
    assert first == several[:1]
    downs = [i for i, name in enumerate(exe.program.weights) if name.endswith(".down")]
    fewer = replace(shared, places=(*shared.places, *downs))  # of which less is their own, by the same program
    device.run(exe, mixed(shared, desks, step, of_B))
    less = desks[0].tokens(device.run(exe, mixed(fewer, desks, step, of_B)))[0]
    each = [desks[0].tokens(device.run(exe, mixed(fewer, desks, step, (number,) * 4)))[0] for number in range(3)]
    assert less == [each[number][row] for row, number in enumerate(of_B)]
    if not device.synthetic():
        assert len({tuple(row) for row in alone}) == 3
        assert each != alone


def test_fellows_may_come_to_the_same_memory_with_other_places(fellows):
    """As when one goes and another comes whose file begins elsewhere; all of it must lie there."""
    shared, desks = fellows
    device, exe = desks[0].device, desks[0].exe
    if device.synthetic() or not exe.mixes(shared.places):
        pytest.skip("this device mixes none, or has no bytes")
    step = rows([([3, 14], 0), ([9], 0), ([5, 35, 8], 0), ([7], 0)])
    first = mixed(shared, desks, step, (0, 1, 1, 1))
    places, both = list(first.fellows.offsets[0]), [exe.program.weights.index(f"layers.{i}.down") for i in (0, 1)]
    places[both[0]], places[both[1]] = places[both[1]], places[both[0]]
    later = replace(first, fellows=replace(first.fellows, offsets=(tuple(places),)))
    (before,), (after,) = (desks[0].tokens(device.run(exe, binding)) for binding in (first, later))
    alone = replace(mixed(shared, desks, step, (1,) * 4), offsets=tuple(places))
    assert after == [before[0], *desks[0].tokens(device.run(exe, alone))[0][1:]]
    assert after != before
    short = replace(first.fellows, weights=(desks[1].weights.view(0, 4096),))
    with pytest.raises(ValueError, match=r"weights reach \d+ but their extent has 4096 bytes"):
        device.run(exe, replace(first, fellows=short))


def test_fellows_that_are_nobodys_are_refused(fellows):
    shared, desks = fellows
    if not desks[0].exe.mixes(shared.places):
        pytest.skip("this device mixes none")
    step = rows([([3], 0), ([9], 0)])
    good = mixed(shared, desks, step, (0, 1))
    for of_B in ([0, 2], [0, -1]):
        with pytest.raises(ValueError, match=r"sequences have the weights .* of 2"):
            desks[0].device.run(desks[0].exe, replace(good, fellows=replace(good.fellows, of_B=of_B)))
    with pytest.raises(ValueError, match="does not mix sequences of different weights"):
        desks[0].device.run(desks[0].exe, replace(good, shared=None))


def test_a_gate_for_no_stage_is_refused(desk):
    with pytest.raises(ValueError, match=r"layers\.9"):
        desk.run(prompt_rows(), gates={"layers.9": next(iter(desk.fetch().values()))})


def test_a_failure_passes_on_through_after(desk):
    view = desk.weights.view(0, desk.layout.ranges[0].source.size_bytes)
    bad = desk.device.fetch(view, broken_range(desk.layout))
    run = desk.run(prompt_rows(), after=[bad])
    second = desk.run(prompt_rows(), after=[run])
    desk.wait(second)
    assert isinstance(desk.device.failure(bad), TransferError)
    assert desk.device.failure(run) is desk.device.failure(bad)
    assert desk.device.failure(second) is desk.device.failure(bad)
    with pytest.raises(TransferError):
        desk.device.tokens(run)


@pytest.mark.parametrize("stage", ["embed", "layers.1"])
def test_a_failure_passes_on_through_a_gate_and_the_device_goes_on(desk, stage):
    loaded(desk)
    expected = desk.tokens(desk.run(prompt_rows()))
    view = desk.weights.view(0, desk.layout.ranges[0].source.size_bytes)
    bad = desk.device.fetch(view, broken_range(desk.layout))
    run = desk.run(prompt_rows(), gates={stage: bad})
    desk.wait(run)
    assert desk.device.failure(run) is desk.device.failure(bad)
    assert isinstance(desk.device.failure(bad), TransferError)
    assert desk.tokens(desk.run(prompt_rows(), gates=desk.fetch())) == expected


def test_wait_any_returns_when_one_is_finished(desk):
    fetches = list(desk.fetch().values())
    desk.device.wait_any(fetches)
    assert any(desk.device.done(event) for event in fetches)


@pytest.mark.parametrize("is_broken", [False, True])
def test_waiting_for_an_event_outlasts_waits_that_end_early(desk, is_broken):
    early = Early(desk.device)
    view = desk.weights.view(0, desk.layout.ranges[0].source.size_bytes)
    source = broken_range(desk.layout) if is_broken else desk.layout.ranges[0].source
    events = [desk.device.fetch(view, source) for _ in range(4)]
    for event in reversed(events):
        wait_for(early, event)
        assert desk.device.done(event)
        assert (desk.device.failure(event) is not None) == is_broken
    waits = early.waits
    wait_for(early, events[0])
    assert early.waits == waits  # nothing is left to wait for


def test_wait_any_returns_at_until(device):
    for delay_s in (0.0, 1e-3, 5e-3):
        until = device.now() + delay_s
        device.wait_any([], until=until)
        assert device.now() >= until
    before = device.now()
    device.wait_any([], until=before - 1.0)
    assert device.now() >= before


def test_wait_any_without_events_or_until_is_refused(device):
    with pytest.raises(ValueError, match="wait"):
        device.wait_any([])


def test_time_never_runs_backwards(desk):
    seen = [desk.device.now()]
    run = desk.run(prompt_rows(), gates=desk.fetch())
    seen.append(desk.device.now())
    while not desk.device.done(run):
        desk.device.wait_any([run], until=seen[-1] + 1e-4)
        seen.append(desk.device.now())
    span = desk.device.span(run)
    assert seen == sorted(seen)
    assert seen[0] <= span.start_s <= span.end_s <= seen[-1]


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


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
def test_n_steps_equal_n_single_steps(desk, sampling):
    loaded(desk)
    settings = [sampling, dataclasses.replace(sampling, seed=11)]
    other = [1, 2, 3]
    first = desk.tokens(desk.run(rows([(PROMPT, 0), (other, 0)], settings)))[0]
    single, last = [], first
    for step in range(6):
        chunks = [([last[0]], len(PROMPT) + step), ([last[1]], len(other) + step)]
        last = desk.tokens(desk.run(rows(chunks, settings)))[0]
        single.append(last)
    again = desk.tokens(desk.run(rows([(PROMPT, 0), (other, 0)], settings)))[0]
    assert again == first
    chunks = [([first[0]], len(PROMPT)), ([first[1]], len(other))]
    assert desk.tokens(desk.run(rows(chunks, settings), steps=6)) == single


def test_steps_stop_after_an_end_token(desk):
    loaded(desk)
    first = desk.tokens(desk.run(prompt_rows(sampling=[WARM])))[0][0]
    decode = [([first], len(PROMPT))]
    free = [token for (token,) in desk.tokens(desk.run(rows(decode, [WARM]), steps=8))]
    assert len(free) == 8
    end = free[3]
    stop = free.index(end) + 1
    ended = desk.tokens(desk.run(rows(decode, [WARM], end_ids=((end, V),)), steps=8))
    assert [token for (token,) in ended] == free[:stop]


def test_an_interrupt_ends_one_run_after_a_step(desk):
    loaded(desk)
    first = desk.tokens(desk.run(prompt_rows()))[0]
    decode = rows([(first, len(PROMPT))])
    free = desk.tokens(desk.run(decode, steps=6))
    assert len(free) == 6
    desk.device.interrupt()
    assert desk.tokens(desk.run(decode, steps=6)) == free[:1]
    assert desk.tokens(desk.run(decode, steps=6)) == free


def test_an_interrupt_at_any_time_leaves_a_prefix(desk):
    loaded(desk)
    first = desk.tokens(desk.run(prompt_rows()))[0]
    decode = rows([(first, len(PROMPT))])
    free = desk.tokens(desk.run(decode, steps=8))
    for delay_s in (0.0, 1e-5, 1e-4):
        run = desk.run(decode, steps=8, gates=desk.fetch())
        desk.device.wait_any([run], until=desk.device.now() + delay_s)
        desk.device.interrupt()
        desk.device.interrupt()
        drawn = desk.tokens(run)
        assert 1 <= len(drawn) <= 8
        assert drawn == free[: len(drawn)]
        desk.tokens(desk.run(decode))


def test_many_steps_of_a_prefill_are_refused(desk):
    loaded(desk)
    with pytest.raises(ValueError, match="steps"):
        desk.run(prompt_rows(), steps=2)


def test_chunked_prefill_equals_whole(desk):
    loaded(desk)
    whole = desk.tokens(desk.run(prompt_rows()))
    for cut in (1, 2, 4):
        desk.run(rows([(PROMPT[:cut], 0)]))
        assert desk.tokens(desk.run(rows([(PROMPT[cut:], cut)]))) == whole


def test_a_batch_equals_each_alone(desk):
    loaded(desk)
    prompts = [PROMPT, [1], [40, 41, 42, 43, 44, 45, 46]]
    settings = [Sampling(), WARM, dataclasses.replace(WARM, seed=99)]
    together = desk.tokens(desk.run(rows([(prompt, 0) for prompt in prompts], settings)))[0]
    alone = [desk.tokens(desk.run(rows([(p, 0)], [s])))[0][0] for p, s in zip(prompts, settings, strict=True)]
    assert together == alone
    assert all(0 <= token < V for token in together)


def test_logits_are_those_that_the_step_drew_from(desk):
    needs_bytes(desk.device)
    loaded(desk)
    prompts = [PROMPT, [1], [40, 41, 42, 43, 44, 45, 46]]
    step = rows([(prompt, 0) for prompt in prompts], [Sampling(), WARM, dataclasses.replace(WARM, seed=99)])
    unshared = desk.device.load(compile_graph(desk.graph, desk.device.spec.rule_set, share_buffers=False))
    expected = desk.device.inspect(unshared, desk.binding(step))["head/logits"]
    for _ in range(2):  # the second time captured, on a device that captures
        event = desk.run(step)
        (drawn,) = desk.tokens(event)
        found = desk.device.logits(event, [2, 0, 1])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[[2, 0, 1]])
        for row, (prompt, settings) in enumerate(zip(prompts, step.sampling, strict=True)):
            (one,) = desk.device.logits(event, [row])
            assert draw(one, settings, len(prompt) - 1) == drawn[row]
    found[:] = 0  # they are the caller's
    assert desk.device.logits(event, [0]).any()


def test_logits_of_more_rows_than_sequences(desk):
    """Those of a prompt that is scored, behind those that are sampled, in any order."""
    needs_bytes(desk.device)
    loaded(desk)
    two = rows([(PROMPT, 0), ([40, 41, 42, 43, 44, 45, 46], 0)])
    picked = [*two.rows_R, 3, 1, 2, len(PROMPT)]
    step = dataclasses.replace(two, rows_R=np.array(picked, dtype=np.int32), sampling=(WARM, *[Sampling()] * 5))
    unshared = desk.device.load(compile_graph(desk.graph, desk.device.spec.rule_set, share_buffers=False))
    expected = desk.device.inspect(unshared, desk.binding(step))["head/logits"]
    event = desk.run(step)
    (drawn,) = desk.tokens(event)
    found = desk.device.logits(event, range(6))
    np.testing.assert_array_equal(found, expected)
    assert drawn[0] == draw(found[0], WARM, len(PROMPT) - 1)
    assert drawn[1:] == found[1:].argmax(axis=1).tolist()
    alone = desk.run(rows([(PROMPT[:2], 0)]))
    assert desk.tokens(alone)[0][0] == drawn[3]


def test_logits_of_a_decode_step_of_fewer_sequences_than_its_bucket(desk):
    needs_bytes(desk.device)
    loaded(desk)
    prompts = [PROMPT, [1, 2], [9]]
    (last,) = desk.tokens(desk.run(rows([(prompt, 0) for prompt in prompts])))
    for _ in range(3):
        chunks = [([token], len(prompt)) for token, prompt in zip(last, prompts, strict=True)]
        event = desk.run(rows(chunks, [WARM] * 3))
        (drawn,) = desk.tokens(event)
        logits = desk.device.logits(event, range(3))
        assert [draw(z, WARM, len(p)) for z, p in zip(logits, prompts, strict=True)] == drawn


def test_logits_are_there_until_the_next_run_and_of_one_step_only(desk):
    needs_bytes(desk.device)
    loaded(desk)
    first = desk.run(prompt_rows())
    ((token,),) = desk.tokens(first)
    for row in (1, -1):
        with pytest.raises(ValueError, match="rows"):
            desk.device.logits(first, [row])
    several = desk.run(rows([([token], len(PROMPT))]), steps=2)
    desk.wait(several)
    inspected = desk.run(prompt_rows())
    desk.wait(inspected)
    desk.device.inspect(desk.exe, desk.binding(prompt_rows()))
    for event in (first, several, inspected):
        with pytest.raises(ValueError, match=str(event.event_id)):
            desk.device.logits(event, [0])
    failed = desk.run(prompt_rows(), gates={"embed": desk.device.fetch(desk.weights, broken_range(desk.layout))})
    desk.wait(failed)
    with pytest.raises(TransferError):
        desk.device.logits(failed, [0])


def test_who_computes_no_numbers_has_no_logits(desk):
    if not desk.device.synthetic():
        pytest.skip("this device computes numbers")
    loaded(desk)
    event = desk.run(prompt_rows())
    desk.wait(event)
    with pytest.raises(UnsupportedError, match="no numbers"):
        desk.device.logits(event, [0])


def test_no_rows_is_a_step_without_tokens(desk):
    loaded(desk)
    event = desk.run(rows([]))
    desk.wait(event)
    assert desk.device.tokens(event).shape == (1, 0)


def test_tokens_that_are_not_sampled_need_no_row(desk):
    loaded(desk)
    step = dataclasses.replace(prompt_rows(), rows_R=np.zeros(0, dtype=np.int32), sampling=())
    event = desk.run(step)
    desk.wait(event)
    assert desk.device.tokens(event).shape == (1, 0)


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


def test_closing_twice_is_closing_once(desk):
    loaded(desk)
    desk.device.close()
    desk.device.close()
