"""A run as one launch whose programs walk all rows, interpreted in turns: the bits of the separate launches.

Knows nothing about streams.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from tests.device.in_turns import StuckError, in_turns
from tests.device.interpreted import WIDE, Bucket, bound_rows, gpu
from tests.device.random_expert import making, step_of

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.kernels.triton import persistent
from coterie.kernels.triton.feed import feed_launch, stops_of

F32, F16, BF16, Q8, Q4, Q4Z = DType.F32, DType.F16, DType.BF16, DType.Q8, DType.Q4, DType.Q4Z


@triton.jit
def write_meet_read(slots, seen, arrived, ROUNDS: tl.constexpr, PROGRAMS: tl.constexpr):
    """Each program stores the round, meets, and keeps the least that it then sees of all."""
    me = tl.program_id(0)
    for r in tl.range(1, ROUNDS + 1):
        tl.store(slots + me, r)
        persistent.grid_barrier(arrived)
        least = r
        most = r
        for p in tl.static_range(PROGRAMS):
            least = tl.minimum(least, tl.load(slots + p))
            most = tl.maximum(most, tl.load(slots + p))
        tl.store(seen + 2 * (me * ROUNDS + r - 1), least)
        tl.store(seen + 2 * (me * ROUNDS + r - 1) + 1, most)
        persistent.grid_barrier(arrived)


def as_it_should(programs, seed, rounds=3, launches=2):
    """Whether all programs saw just that round's values, in several launches that share a count of arrivals."""
    arrived, found = torch.zeros(1, dtype=torch.int64), []
    with in_turns(seed, eager=0.3, most=2_000):
        for _ in range(launches):
            slots, seen = torch.zeros(programs, dtype=torch.int32), torch.zeros(programs, rounds, 2, dtype=torch.int32)
            how = {"ROUNDS": rounds, "PROGRAMS": programs, "launch_cooperative_grid": True}
            write_meet_read[(programs,)](slots, seen, arrived, **how)
            found.append(seen.numpy())
    return bool((np.stack(found) == np.arange(1, rounds + 1)[:, None]).all())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("programs", [1, 2, 5])
def test_who_has_met_sees_what_all_stored_before_and_nothing_of_later(programs, seed):
    assert as_it_should(programs, seed)


@triton.jit
def pass_by(arrived):
    """Counts, and waits for nobody."""
    tl.atomic_add(arrived, 1)


@triton.jit
def leave_early(arrived):
    """Waits for all but one."""
    programs = tl.num_programs(0).to(tl.int64)
    complete = (tl.atomic_add(arrived, 1) // programs + 1) * programs
    while tl.atomic_add(arrived, 0) < complete - 1:
        pass


@triton.jit
def set_back(arrived):
    """Who comes last sets the count to 0, for which the others wait: who looks late finds the next meeting begun."""
    if tl.atomic_add(arrived, 1) + 1 == tl.num_programs(0):
        tl.atomic_xchg(arrived, 0)
    while tl.atomic_add(arrived, 0) != 0:
        pass


@pytest.mark.parametrize("wrong", [pass_by, leave_early], ids=lambda wrong: wrong.__name__)
def test_a_barrier_that_waits_too_little_is_found_out(monkeypatch, wrong):
    monkeypatch.setattr(persistent, "grid_barrier", wrong)
    assert not all(as_it_should(5, seed) for seed in range(3))


def test_a_barrier_that_is_set_back_leaves_programs_behind(monkeypatch):
    monkeypatch.setattr(persistent, "grid_barrier", set_back)
    with pytest.raises(StuckError):
        as_it_should(5, seed=0)


class Run:
    """Rows of one run of an expert in the CPU device's memory, for Triton's kernels, with all that `feed` needs."""

    def __init__(self, expert, step, steps=2, bucket=None):
        self.bound, self.steps, sizes = bound_rows(expert, step), steps, step.sizes
        self.kept = self.bound.keep(steps)
        self.kept[:] = -7
        self.bucket = bucket or Bucket(sizes.T, sizes.B, sizes.R, 24 * expert.Z)
        self.host = self.bound.rows
        self.rows, self.state = torch.from_numpy(self.host.copy()), torch.zeros(4, dtype=torch.int32)
        self.feed, self.stops = torch.from_numpy(self.bound.feed), torch.from_numpy(stops_of(self.host))
        size = max(gpu.scratch_bytes(self.host, self.bucket, WIDE), 16)
        self.scratch = torch.full((size,), 0xFF, dtype=torch.uint8)

    def launch_each(self, steps=None):
        """A launch for each row, and one for the end of each step."""
        for _ in range(steps or self.steps):
            for index in range(len(self.host)):
                gpu.launch(self.host, self.rows, index, self.bucket, self.scratch, WIDE)
            feed_launch(self.feed, self.state, self.rows, self.stops)()

    def plan(self):
        return persistent.plan_of(self.host, self.rows, self.bucket, self.scratch, WIDE)

    def walk(self, programs, seed=0, **options):
        """One launch for all."""
        plan = self.plan()
        words = torch.from_numpy(plan.words)
        with in_turns(seed, **options) as turns:
            plan.walk(words, self.feed, self.state, self.stops, programs)()
        return turns

    def tokens(self):
        done = int(self.state[0])
        assert (self.kept[done:] == -7).all()
        return self.kept[:done].tolist()


@pytest.fixture
def make():
    with making() as make_expert:
        yield make_expert


def decoding(*tokens, at=0, **options):
    return step_of(*(([token], at + 2 * i) for i, token in enumerate(tokens)), **options)


def compare(make, shape, dtypes, rules, step, programs, bucket=None, seed=0):
    """Tokens, stored values and pages of one launch are those of the separate launches, to the bit."""
    launched, walked = make(shape, dtypes, rules), make(shape, dtypes, rules)
    one, other = (Run(expert, step, bucket=bucket) for expert in (launched, walked))
    with np.errstate(all="ignore"):
        one.launch_each()
        other.walk(programs, seed)
    assert other.tokens() == one.tokens()
    assert other.state.tolist() == one.state.tolist()
    got, expected = other.bound.stored_values(), one.bound.stored_values()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    np.testing.assert_array_equal(walked.kv_bytes(), launched.kv_bytes())
    np.testing.assert_array_equal(other.bound.inputs["positions"], one.bound.inputs["positions"])


QUICK = [
    ("odd", (BF16,), "cache", (5, 9, 2), 3),
    ("one-head", (F32,), "none", (1,), 5),
    ("biases", (Q4, F32, Q8, F16, Q4Z), "cache", (3, 1), 2),
    ("gemma2", (BF16,), "cache", (5,), 3),
    ("norms-behind-and-not-all-rotated", (F16,), "cache", (4, 2), 2),
]
NEWER = ("interleaved-in-part", "queries-that-grow", "normed-behind-rope", "no-gate", "layer-norms", "side-by-side")
NEWER += ("branches-by-groups", "branches-beside-one")
LONG = [
    (shape, dtypes, rules, tokens, programs)
    for shape in ("odd", "mqa", "mha-80", "qk-norm", "window", "norms-behind", "gemma3", "rotated-in-part", "scaled")
    for dtypes in ((F32,), (F16,), (BF16,), (Q4, F32, Q8, F16, Q4Z))
    for rules, tokens, programs in (("cache", (4, 2, 7, 1), 3), ("none", (4,), 7), ("cache", (4, 2), 1))
]
LONG += [
    ("branches", dtypes, rules, tokens, programs)
    for dtypes in ((F32,), (BF16,), (Q4, F32, Q8, F16, Q4Z))
    for rules, tokens, programs in (("cache", (4, 2, 7, 1), 3), ("none", (4,), 7), ("cache", (4, 2), 1))
]
LONG += [(shape, (BF16,), rules, (4, 2), 2) for shape in NEWER for rules in ("cache", "none")]
LONG += [
    ("plain-feed-forward", dtypes, rules, (4, 2), 2) for dtypes in ((BF16,), (Q4Z,)) for rules in ("cache", "none")
]
LONG += [("wide", (F32,), "none", (4, 2, 7), 1)]  # several units of each op that is elementwise


@pytest.mark.parametrize(("shape", "dtypes", "rules", "tokens", "programs"), QUICK, ids=str)
def test_one_launch_gives_the_bits_of_many(make, shape, dtypes, rules, tokens, programs):
    compare(make, shape, dtypes, rules, decoding(*tokens), programs)


@pytest.mark.long
@pytest.mark.parametrize(("shape", "dtypes", "rules", "tokens", "programs"), LONG, ids=str)
def test_one_launch_gives_the_bits_of_many_on_other_shapes(make, shape, dtypes, rules, tokens, programs):
    compare(make, shape, dtypes, rules, decoding(*tokens, at=3), programs, seed=1)


def phases_of(plan):
    """Kind, row, kind asked for and its row, of each phase."""
    return plan.words[persistent.FIRST_PHASE.value :].reshape(-1, persistent.PHASE_WORDS.value).tolist()


def test_a_long_context_is_walked_as_spans_and_then_joined(make):
    """Two phases of one row; the second reads what other programs left in scratch, which began as NaN."""
    expert = make("odd", (BF16,))
    plan = Run(expert, decoding(5), bucket=Bucket(4, 4, 4, 512)).plan()
    phases = phases_of(plan)
    names = [plan.kinds[kind][0].__name__ for kind, *_ in phases]
    assert len(names) == len(expert.program.regions) + 2  # of two layers
    assert [row for (_, row, *_), name in zip(phases, names, strict=True) if name == "join"] == [2, 7]
    compare(make, "odd", (BF16,), "cache", decoding(5, at=90), 2, Bucket(1, 1, 1, 512))


def test_layers_alike_are_compiled_once(make):
    plan = Run(make("odd", (BF16,)), decoding(5)).plan()
    assert len(plan.kinds) == 9  # embed, qkv, attention and its join, out, gate and up, down, logits, sample
    assert len(phases_of(plan)) == 1 + 2 * 6 + 2


def test_behind_each_phase_the_weights_of_the_next_that_has_some_are_asked_for_once(make):
    plan = Run(make("odd", (BF16,)), decoding(5)).plan()
    rows = [row if kind >= 0 else None for _, _, kind, row in phases_of(plan)]
    assert rows == [1, 3, None, None, 4, 5, 6, 8, None, None, 9, 10, 11, 1, None]  # embed, two layers, logits, sample


def test_no_sequences_are_a_step_without_tokens(make):
    run = Run(make("odd", (BF16,)), step_of(), bucket=Bucket(1, 1, 1, 256))
    run.walk(2)
    assert run.state.tolist() == [2, 0, 0, 0]


def test_a_run_ends_after_the_step_in_which_a_row_drew_one_of_its_ends(make):
    expert = make("one-head", (F32,))
    free = expert.run(decoding(1, 11), steps=3).tolist()
    end = free[1][1]
    assert end not in free[0]
    run = Run(expert, decoding(1, 11, end_ids=((), (66, end))), steps=3)
    run.walk(2)
    assert run.state.tolist() == [2, 1, 0, 0]
    assert run.tokens() == free[:2]
    assert not run.rows.view(-1)[run.stops].any()


@pytest.mark.parametrize("asked", [0.1, 0.45, 0.9])
def test_a_word_written_meanwhile_ends_a_run_after_the_step_that_it_is_in(make, asked):
    """Another stream writes it, at any atomic of a run."""
    expert = make("one-head", (F32,))
    step, steps = decoding(1), 3
    free = Run(expert, step, steps)
    whole = free.walk(2).atomics
    run, done = Run(expert, step, steps), []

    def at_atomic(number):
        if number == int(asked * whole):
            run.state[2] = 1
            done.append(int(run.state[0]))

    run.walk(2, at_atomic=at_atomic)
    assert int(run.state[1]) == 1
    assert done[0] < int(run.state[0]) <= min(done[0] + 2, steps)  # two: it came behind this step's last look
    assert run.tokens() == free.tokens()[: int(run.state[0])]


def test_a_run_goes_on_behind_a_step_that_was_launched_by_itself(make):
    """As behind a cold first step, whose rows wait for their weights."""
    one, other = (Run(make("one-head", (F32,)), decoding(1), steps=2) for _ in range(2))
    one.walk(2)
    other.launch_each(1)
    other.walk(2)
    assert other.tokens() == one.tokens()
    assert len(one.tokens()) == 2


def test_another_experts_rows_are_walked_by_the_same_plan(make):
    """A switch rewrites rows: kinds, and so what is compiled, are the same, and the count of arrivals goes on."""
    one, two = (Run(make("odd", (BF16,), seed=seed), decoding(3)) for seed in (1, 2))
    words = torch.from_numpy(one.plan().words)
    assert one.plan().kinds == two.plan().kinds
    assert (one.plan().words == two.plan().words).all()
    rows, plan = one.rows, one.plan()
    found = []
    for run in (one, two):
        rows.copy_(run.rows)
        with in_turns(), np.errstate(all="ignore"):
            plan.walk(words, run.feed, run.state, run.stops, 3)()
        found.append(run.tokens())
    assert found == [make("odd", (BF16,), seed=seed).run(decoding(3), steps=2).tolist() for seed in (1, 2)]


def test_many_tokens_are_not_walked(make):
    run = Run(make("odd", (BF16,)), decoding(5), bucket=Bucket(8, 8, 8, 256))
    with pytest.raises(UnsupportedError, match="products of many tokens are launched by themselves"):
        run.plan()
