"""Measured kernels: what is near them, what is not, and which rows cannot be true."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.pure.graphs import STEADY

from coterie.core.errors import NotFoundError, UsageError
from coterie.plan.validate.rows import CALIBRATION, alternate
from coterie.spec.exchange import ExchangeRow, Exchanges, all_exchanges, exchange_rows
from coterie.spec.kernel import Kernel
from coterie.spec.load import load_machine
from coterie.spec.measured import Kernels, ideal_s, kernels_of, measured_devices, measured_rows
from coterie.spec.stack import stack_names

CHOSEN = ("a100", "h100", "h200")  # whose rows said which forms interpolate; other GPUs came later


@pytest.mark.parametrize("device", measured_devices())
def test_a_measured_row_comes_back_as_it_is(device):
    known = kernels_of(device)
    for row in measured_rows(device):
        if row.possible and row.kernel.family != "element-wise":
            speed = known.speed(row.kernel)
            assert speed.provenance == "measured"
            assert row.ideal_s / speed.util == pytest.approx(row.seconds)


def test_rows_that_beat_the_peaks_are_not_used():
    (row,) = (r for r in measured_rows("h100") if r.kernel == Kernel("attention-decode", (32, 8, 128, 64, 8192), 1))
    apart = Kernel("attention-decode", (32, 8, 128, 64, 8192))
    wrong = replace(row, kernel=apart, ideal_s=ideal_s("h100", apart))
    assert not wrong.possible, "397 us, where 2.1 GB of KV need 641 us at 3.35 TB/s"
    assert row.possible, "keys and values were one memory: 320 us"
    assert kernels_of("h100").speed(apart).provenance != "measured"
    assert Kernels("h100", [wrong]).speed(apart) is None


def test_keys_and_values_in_memories_of_their_own_take_longer_than_the_bench_that_gave_them_one():
    for device in CHOSEN:
        known = kernels_of(device)
        for batch in (16, 64):
            one, two = (Kernel("attention-decode", (32, 8, 128, batch, 8192), planes) for planes in (1, 2))
            seconds = [ideal_s(device, kernel) / known.speed(kernel).util for kernel in (one, two)]
            assert 1.4 * seconds[0] < seconds[1] < 2 * seconds[0]
            assert known.speed(two).provenance == "interpolated", "nobody measured it"


def test_between_rows_a_speed_is_interpolated_and_far_from_them_there_is_none():
    known = kernels_of("a100")
    assert known.speed(Kernel("gemm", (100, 8192, 4096))).provenance == "interpolated"
    assert known.speed(Kernel("gemm", (1, 22016, 4096))).provenance == "transferred"
    assert known.speed(Kernel("gemm", (1, 100, 100))) is None
    assert known.speed(Kernel("gemm", (10**6, 4096, 4096))) is None
    assert known.speed(Kernel("attention-decode", (8, 1, 128, 1, 2048))).provenance == "transferred"
    with pytest.raises(KeyError, match="no kernels were measured on mi300x"):
        kernels_of("mi300x")


@settings(STEADY, max_examples=200)
@given(
    st.sampled_from(measured_devices()),
    st.integers(1, 20000),
    st.sampled_from([1536, 4096, 11008, 22016, 32000]),
    st.sampled_from([4096, 8192]),
)
def test_no_gemm_beats_the_peaks_and_twice_the_tokens_are_not_faster_than_twice(device, m, n, k):
    kernel, double = (Kernel("gemm", (rows, n, k)) for rows in (m, 2 * m))
    speed, more = (kernels_of(device).speed(which) for which in (kernel, double))
    if speed is None or more is None:
        return
    assert 0 < speed.util <= 1
    once, twice = ideal_s(device, kernel) / speed.util, ideal_s(device, double) / more.util
    assert twice <= 2.7 * once, "near what was measured there are no cliffs"


@settings(STEADY, max_examples=100)
@given(st.sampled_from(["attention-decode", "attention-prefill"]), st.integers(1, 256), st.integers(1, 16000))
def test_no_attention_beats_the_peaks(family, batch, length):
    speed = kernels_of("h100").speed(Kernel(family, (32, 8, 128, batch, length)))
    assert speed is None or 0 < speed.util <= 1


@pytest.mark.parametrize(
    ("family", "between", "above"),
    [
        ("gemm", 0.05, 0.07),
        ("gemm-fp8", 0.05, 0.07),
        ("attention-prefill", 0.06, 0.35),
        ("attention-decode", 0.06, 0.08),
    ],
)
def test_calibration_rows_are_found_from_the_others(family, between, above):
    """How the forms of interpolation were chosen: no validation row is looked at. A form may get better, not worse."""
    errors = left_out(family, CHOSEN)
    assert mean(errors[False]) < between
    assert mean(errors[True]) < above


LATER = ("b200", "b300", "gb200", "l40s", "rtx-pro-6000")


@pytest.mark.parametrize(
    ("devices", "family", "between", "above"),
    [
        (LATER, "gemm", 0.11, 0.12),
        (LATER, "attention-prefill", 0.14, 0.42),
        (LATER, "attention-decode", 0.06, 0.09),
        (("gb300",), "gemm", 0.06, 0.03),
        (("gb300",), "attention-prefill", 0.19, 0.65),
        (("gb300",), "attention-decode", 0.07, 0.12),
    ],
)
def test_the_same_forms_serve_gpus_that_came_later(devices, family, between, above):
    """Nothing was chosen by their rows; gemms of B200s jump with their tiles, attention of one token by waves."""
    errors = left_out(family, devices)
    assert mean(errors[False]) < between
    assert mean(errors[True]) < above


def test_every_gpu_is_one_of_these():
    assert sorted((*CHOSEN, *LATER, "gb300")) == sorted(measured_devices())


def left_out(family, devices):
    """Errors of calibration rows found from the others; by whether a row is the last of its GPU."""
    errors = {True: [], False: []}
    for device in devices:
        rows = [row for row in measured_rows(device) if row.kernel.family == family and row.possible]
        splits = alternate(row.kernel.y for row in rows)
        rows = [row for row in rows if splits[row.kernel.y] == CALIBRATION]
        ys = sorted({row.kernel.y for row in rows})
        for row in (row for row in rows if row.kernel.y > ys[0]):
            speed = Kernels(device, [other for other in rows if other.kernel.y != row.kernel.y]).speed(row.kernel)
            if speed is not None:
                errors[row.kernel.y == ys[-1]].append(abs(row.ideal_s / speed.util / row.seconds - 1))
    return errors


@settings(STEADY, max_examples=100)
@given(
    st.sampled_from(measured_devices()),
    st.sampled_from([("attention-decode", (32, 32, 128, 16)), ("attention-decode", (32, 8, 128, 1)),
                     ("attention-decode", (32, 8, 128, 64)), ("attention-prefill", (32, 8, 128, 8))]),
    st.integers(512, 40000),
    st.integers(1, 4000),
)  # fmt: skip
def test_a_longer_context_lies_between_the_rows_around_it(device, kind, length, more):
    """From the times of the rows below and above: first rows of batch 1 get faster with length (h100, b300)."""
    family, shape = kind
    known = kernels_of(device)

    def seconds(at):
        kernel = Kernel(family, (*shape, at))
        speed = known.speed(kernel)
        return ideal_s(device, kernel) / speed.util

    lengths = [row.kernel.y for row in measured_rows(device) if row.possible and row.kernel.shape[:4] == shape
               and row.kernel.family == family]  # fmt: skip
    assume(lengths and min(lengths) <= length)  # of GPUs whose cache held them, short ones were not taken
    around = [max(y for y in lengths if y <= length), min((y for y in lengths if y >= length), default=length)]
    ends = sorted(seconds(round(y)) for y in around)
    assert ends[0] * (1 - 1e-9) <= seconds(length) <= ends[1] * (1 + 1e-9)
    if length >= max(lengths):
        assert seconds(length + more) >= seconds(length) * (1 - 1e-9)


def test_a_gemm_is_as_fast_as_those_of_its_own_proportions():
    """Few columns and long sums: an h100 takes 53.4 us where as much work with many columns takes 45.4 us."""
    known = kernels_of("h100")
    long, wide, even = (Kernel("gemm", (200, *shape)) for shape in ((4096, 12288), (12288, 4096), (7168, 7168)))
    seconds = [ideal_s("h100", kernel) / known.speed(kernel).util for kernel in (long, even, wide)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > 1.05 * seconds[2]


def test_above_the_last_row_a_fixed_part_stays_what_it_was():
    """Decode attention on an h100, batch 64, from 512 positions to 8192."""
    known = kernels_of("h100")
    rows = [row for row in measured_rows("h100") if row.kernel.shape[:4] == (32, 8, 128, 64) and row.possible]
    first, far = min(rows, key=lambda row: row.kernel.y), Kernel("attention-decode", (32, 8, 128, 64, 8192))
    seconds = ideal_s("h100", far) / known.speed(far).util
    assert seconds < 0.9 * first.seconds * 8192 / first.kernel.y, "a fixed part does not grow"
    assert seconds >= ideal_s("h100", far), "nor do bytes beat the peaks"


def test_an_exchange_between_sizes_lies_between_their_times():
    known = all_exchanges()
    assert known.all_reduce("a100/nccl", 8, 8192).seconds == pytest.approx(21.3e-6)
    between = known.all_reduce("a100/nccl", 8, 10**6)
    assert between.provenance == "interpolated"
    assert 27.4e-6 < between.seconds < 53.7e-6
    assert known.all_reduce("a100/nccl", 8, 10).seconds == pytest.approx(21.3e-6), "a latency does not shrink"
    assert known.all_reduce("a100/custom", 8, 10**9).seconds == known.all_reduce("a100/nccl", 8, 10**9).seconds
    assert known.all_reduce("a100/custom", 4, 10**9).seconds == known.all_reduce("a100/nccl", 4, 10**9).seconds
    assert known.all_reduce("gb300/custom", 8, 536870912).provenance == "measured", "NCCL of 4 GPUs says nothing of 8"
    assert known.all_reduce("gb300/custom", 8, 8192).seconds < known.all_reduce("gb300/nccl", 8, 8192).seconds / 3
    assert known.all_reduce("mi300x/nccl", 8, 8192) is None
    one = Exchanges([ExchangeRow("x", "nccl", 2, 1000, 1e-5), ExchangeRow("x", "nccl", 2, 2000, 2e-5)])
    assert one.all_reduce("x/nccl", 2, 4000).seconds == pytest.approx(4e-5)
    assert one.all_reduce("x/nccl", 2, 4000).provenance == "transferred"


@settings(STEADY, max_examples=60)
@given(st.sampled_from([("a100", 2), ("a100", 4), ("h100", 8)]), st.integers(10**4, 10**9), st.integers(1, 10**8))
def test_more_bytes_are_never_exchanged_faster_nor_is_a_row_missed(who, size, more):
    (device, ranks), known = who, all_exchanges()
    less, greater = (known.all_reduce(f"{device}/nccl", ranks, bytes_).seconds for bytes_ in (size, size + more))
    assert less <= greater * (1 + 1e-9)
    for row in exchange_rows():
        if (row.device, row.library, row.ranks) == (device, "nccl", ranks):
            near = known.all_reduce(f"{device}/nccl", ranks, row.size_bytes + 1).seconds
            assert near == pytest.approx(row.seconds, rel=1e-3)


def test_sizes_left_out_of_the_calibration_rows_are_found_better_than_on_a_line():
    errors = []
    for key in dict.fromkeys((row.device, row.library, row.ranks) for row in exchange_rows() if row.device in CHOSEN):
        rows = [row for row in exchange_rows() if (row.device, row.library, row.ranks) == key]
        splits = alternate(row.size_bytes for row in rows)
        rows = sorted((row for row in rows if splits[row.size_bytes] == CALIBRATION), key=lambda row: row.size_bytes)
        for out in rows[1:-1]:
            known = Exchanges([row for row in rows if row is not out])
            errors.append(abs(known.all_reduce(f"{key[0]}/{key[1]}", key[2], out.size_bytes).seconds / out.seconds - 1))
    assert mean(errors) < 0.19


def test_a_stack_lays_its_factors_over_a_machine_and_says_which_are_fitted():
    assert stack_names() == ("nemo-2023", "splitwise-2023", "trtllm-2024")
    plain, nemo = load_machine("dgx-a100"), load_machine("dgx-a100:stack=nemo-2023")
    assert (plain.stack, nemo.stack) == ("", "nemo-2023")
    assert plain.step_host_s == 0 < nemo.step_host_s < 5e-3
    assert nemo.flops_per_s == plain.flops_per_s
    assert any(note.startswith("fitted: step_host") for note in nemo.notes)
    assert load_machine("dgx-h100:stack=trtllm-2024").peers.library == "h100/custom"


@pytest.mark.parametrize(
    ("text", "where", "fact"),
    [
        ("speed = 3", "stack mine.toml: speed", "unknown key"),
        ("step_host = 3", "stack mine.toml: step_host", "is 3"),
        (
            'step_host.b200 = { value = 1, unit = "ms", source = "x" }',
            "stack mine.toml: step_host",
            "no number for a100",
        ),
        ("step_host = ", "stack mine.toml", "not TOML"),
        ('step_host = { value = -1, unit = "ms", source = "x" }', "dgx-a100.toml: step_host.value", "-1"),
        (
            'exchange_share = { value = 0, unit = "share", source = "x" }',
            "dgx-a100.toml: exchange_share.value",
            "is 0",
        ),
        ('large_step = { value = 0.5, unit = "count", source = "x" }', "dgx-a100.toml: large_step.value", "is 0.5"),
        ('kernel_share = { value = 2, unit = "share", source = "x" }', "dgx-a100.toml: kernel_share.value", "is 2"),
    ],
)
def test_a_wrong_stack_is_refused(tmp_path, monkeypatch, text, where, fact):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_machine("dgx-a100:stack=mine.toml")
    assert caught.value.where == where
    assert fact in caught.value.fact
    assert caught.value.remedy


def test_an_unknown_share_is_as_if_it_were_not_given(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('exchange_share = { unknown = true, source = "nobody says" }')
    assert load_machine(f"dgx-a100:stack={mine}").exchange_share == load_machine("dgx-a100").exchange_share == 1.0


def test_an_unknown_stack_names_those_that_exist(tmp_path):
    with pytest.raises(NotFoundError, match="nemo-2023"):
        load_machine("dgx-a100:stack=vllm-2030")
    with pytest.raises(NotFoundError, match="no such file"):
        load_machine(f"dgx-a100:stack={tmp_path}/none.toml")
    with pytest.raises(UsageError, match="no number for machines without measured kernels"):
        load_machine("sn40l-node:stack=nemo-2023")
