"""Measured kernels: what is near them, what is not, and which rows cannot be true."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.graphs import STEADY

from coterie.core.errors import NotFoundError, UsageError
from coterie.spec.exchange import ExchangeRow, Exchanges, all_exchanges
from coterie.spec.load import load_machine
from coterie.spec.measured import Kernel, Kernels, ideal_s, kernels_of, measured_devices, measured_rows
from coterie.spec.stack import stack_names


@pytest.mark.parametrize("device", ["a100", "h100", "h200"])
def test_a_measured_row_comes_back_as_it_is(device):
    known = kernels_of(device)
    for row in measured_rows(device):
        if row.possible and row.kernel.family != "element-wise":
            speed = known.speed(row.kernel)
            assert speed.provenance == "measured"
            assert row.ideal_s / speed.util == pytest.approx(row.seconds)


def test_rows_that_beat_the_peaks_are_not_used():
    (row,) = (r for r in measured_rows("h100") if r.kernel == Kernel("attention-decode", (32, 8, 128, 64, 8192)))
    assert not row.possible, "397 us, where 2.1 GB of KV need 641 us at 3.35 TB/s"
    assert kernels_of("h100").speed(row.kernel).provenance != "measured"
    fast = replace(row, seconds=row.ideal_s / 2)
    assert Kernels("h100", [fast]).speed(row.kernel) is None


def test_between_rows_a_speed_is_interpolated_and_far_from_them_there_is_none():
    known = kernels_of("a100")
    assert known.speed(Kernel("gemm", (100, 8192, 4096))).provenance == "interpolated"
    assert known.speed(Kernel("gemm", (1, 22016, 4096))).provenance == "transferred"
    assert known.speed(Kernel("gemm", (1, 100, 100))) is None
    assert known.speed(Kernel("gemm", (10**6, 4096, 4096))) is None
    assert known.speed(Kernel("attention-decode", (8, 1, 128, 1, 2048))).provenance == "transferred"
    with pytest.raises(KeyError, match="no kernels were measured on b200"):
        kernels_of("b200")


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


def test_an_exchange_between_sizes_lies_between_their_times():
    known = all_exchanges()
    assert known.all_reduce("a100/nccl", 8, 8192).seconds == pytest.approx(21.3e-6)
    between = known.all_reduce("a100/nccl", 8, 10**6)
    assert between.provenance == "interpolated"
    assert 27.4e-6 < between.seconds < 53.7e-6
    assert known.all_reduce("a100/nccl", 8, 10).seconds == pytest.approx(21.3e-6), "a latency does not shrink"
    assert known.all_reduce("a100/custom", 8, 10**9).seconds == known.all_reduce("a100/nccl", 8, 10**9).seconds
    assert known.all_reduce("b200/nccl", 8, 8192) is None
    one = Exchanges([ExchangeRow("x", "nccl", 2, 1000, 1e-5), ExchangeRow("x", "nccl", 2, 2000, 2e-5)])
    assert one.all_reduce("x/nccl", 2, 4000).seconds == pytest.approx(4e-5)
    assert one.all_reduce("x/nccl", 2, 4000).provenance == "transferred"


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


def test_an_unknown_stack_names_those_that_exist(tmp_path):
    with pytest.raises(NotFoundError, match="nemo-2023"):
        load_machine("dgx-a100:stack=vllm-2030")
    with pytest.raises(NotFoundError, match="no such file"):
        load_machine(f"dgx-a100:stack={tmp_path}/none.toml")
    with pytest.raises(UsageError, match="no number for machines without measured kernels"):
        load_machine("sn40l-node:stack=nemo-2023")
