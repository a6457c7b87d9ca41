"""Units, element types, shapes and errors: what every part counts, rounds and prints with."""

from __future__ import annotations

import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.core import errors
from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.shapes import Sizes, Symbol, Times, check, trailing
from coterie.core.units import format_bytes, format_count, format_rate, format_seconds, parse_bytes, parse_seconds

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@given(st.integers(0, 2**70), st.sampled_from([*UNITS, ""]))
def test_whole_sizes_parse_exactly(number, unit):
    assert parse_bytes(f" {number} {unit.swapcase()}") == number * UNITS.get(unit, 1)


@pytest.mark.parametrize(
    ("text", "expected"), [("50ms", 0.05), (" 1.5 s", 1.5), ("10m", 600.0), ("10 min", 600.0), ("2h", 7200.0)]
)
def test_times_are_read(text, expected):
    assert parse_seconds(text) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("text", "number"), [("30", "30"), (" 1.5 ", "1.5"), (".5", ".5")])
def test_a_time_without_a_unit_says_how_to_write_it(text, number):
    with pytest.raises(ValueError, match=rf"has no unit; write {number}s for seconds, or a number and us, ms, s, min"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["", "0", "0s", "soon", "-1s", "1d", "1 S", "nan s"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="is not a time above 0; write a number and us, ms, s"):
        parse_seconds(text)


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(list(UNITS)))
def test_decimal_sizes_are_as_written(whole, thousandths, unit):
    exact = (whole + Fraction(thousandths, 1000)) * UNITS[unit]
    assert parse_bytes(f"{whole}.{thousandths:03}{unit}") == int(exact)


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 2", "1e9", "3 XB", "0x10", "1.2.3", "inf", "nan", "1 K"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a size; write a number and B, KiB"):
        parse_bytes(text)


@given(st.integers(0, 2**50))
def test_printed_capacities_parse_back(size_bytes):
    """Two decimals: an error of at most half a hundredth of the printed unit."""
    text = format_bytes(size_bytes)
    number, unit = text.split()
    assert float(number) < 1024 or unit == "TiB"
    assert abs(parse_bytes(text) - size_bytes) <= UNITS[unit] * 0.005 + 1


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (2**20 - 1, "1.00 MiB"), (3 * 2**39, "1.50 TiB")],
)
def test_capacities_are_binary(size_bytes, text):
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0.0 B/s"), (999.96, "1.0 kB/s"), (25.06e9, "25.1 GB/s"), (2e12, "2.00 TB/s"), (3e15, "3000.00 TB/s")],
)
def test_rates_are_decimal(rate, text):
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ns"),
        (2.5e-9, "2.5 ns"),
        (0.00124, "1.24 ms"),
        (0.9996, "1 s"),
        (999.7e-9, "1 us"),
        (59.94, "59.9 s"),
        (1234.4, "1234 s"),
        (-0.002, "-2 ms"),
    ],
)
def test_durations_have_three_digits(seconds, text):
    assert format_seconds(seconds) == text


@given(st.floats(1e-9, 1e6))
def test_durations_are_never_in_exponents_and_never_far_off(seconds):
    number, unit = format_seconds(seconds).split()
    assert "e" not in number
    printed = float(number) * {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[unit]
    assert printed == pytest.approx(seconds, rel=0.0051)


def nearest_bf16(value: np.float32) -> float:
    """Rounding by definition: the nearer of the two neighbours with eight significant bits, or else the even one."""
    exact = Fraction(float(value))
    if exact == 0:
        return float(value)
    exponent = max(int(np.floor(np.log2(abs(float(value))))), -126)
    step = Fraction(2) ** (exponent - 7)
    rounded = float(round(exact / step) * step)  # a Fraction rounds half to even
    return rounded if abs(rounded) < 2.0**128 else np.copysign(np.inf, rounded)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_rounds_to_nearest_even(value):
    bits = from_f32(np.array([value], np.float32), DType.BF16)
    assert bits.dtype == np.uint16
    got = to_f32(bits, DType.BF16)[0]
    assert got == nearest_bf16(np.float32(value))
    assert np.signbit(got) == np.signbit(np.float32(value))


@given(st.integers(0, 0x7F7F), st.sampled_from([0x7FFF, 0x8000, 0x8001]))
def test_bf16_ties_go_to_even(high, low):
    value = np.array([(high << 16) | low], np.uint32).view(np.float32)
    up = low == 0x8001 or (low == 0x8000 and high % 2)
    assert from_f32(value, DType.BF16)[0] == high + up


def test_every_bf16_comes_back():
    bits = np.arange(2**16, dtype=np.uint16)
    numbers = to_f32(bits, DType.BF16)
    back = from_f32(numbers, DType.BF16)
    nan = np.isnan(numbers)
    np.testing.assert_array_equal(back[~nan], bits[~nan])
    assert np.isnan(to_f32(back[nan], DType.BF16)).all()


def test_bf16_of_nan_with_low_bits_only_stays_nan():
    """Cut off or rounded up, these bits would be infinite or zero."""
    nans = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(to_f32(from_f32(nans, DType.BF16), DType.BF16)).all()


def test_too_large_becomes_infinite_without_a_warning():
    values = np.array([65519.9, 65520, -1e30, np.inf], np.float32)
    np.testing.assert_array_equal(to_f32(from_f32(values, DType.F16), DType.F16), [65504, np.inf, -np.inf, np.inf])
    largest = np.array([3.4028235e38], np.float32)
    assert to_f32(from_f32(largest, DType.BF16), DType.BF16)[0] == np.inf


def test_f16_rounds_to_nearest_even_down_to_subnormals():
    tie = 1 + 2.0**-11
    values = np.array([tie, tie + 2.0**-10, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24, -0.0, np.nan], np.float32)
    got = to_f32(from_f32(values, DType.F16), DType.F16)
    np.testing.assert_array_equal(got, [1, 1 + 2.0**-9, 2.0**-24, 0, 2.0**-23, -0.0, np.nan])
    assert np.signbit(got[5])


def test_strided_values_round_like_their_copy():
    values = np.random.default_rng(0).standard_normal((6, 5), dtype=np.float32)
    for dtype in (DType.BF16, DType.F16, DType.F32):
        got = from_f32(values.T[::2], dtype)
        np.testing.assert_array_equal(got, from_f32(values.T[::2].copy(), dtype))
        np.testing.assert_array_equal(to_f32(got[:, ::2], dtype), to_f32(got, dtype)[:, ::2])


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if not dtype.is_packed and dtype is not DType.KV8])
def test_sizes_of_elements_are_those_of_their_numpy_type(dtype):
    assert dtype.size_bytes == dtype.numpy.itemsize
    assert dtype.is_float == (dtype.value in ("F32", "F16", "BF16"))


def test_check_binds_letters():
    assert check("T D, D, T", ("x", (3, 4)), ("w", (4,)), ("y", (3,))) == {"T": 3, "D": 4}


@pytest.mark.parametrize(
    ("letters", "shapes", "words"),
    [
        ("T D, D", [("x", (3, 4)), ("w", (5,))], ["D is 4 in x but 5 in w", "(5,)"]),
        ("T D", [("x", (3,))], ["x has 1 dimensions (3,)", "'T D' wants 2"]),
        ("T, T", [("x", (3,))], ["2 shapes", "1 tensors"]),
        ("T T", [("x", (3, 4))], ["T is 3 in x but 4 in x"]),
    ],
)
def test_check_names_both_tensors_and_both_sizes(letters, shapes, words):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        check(letters, *shapes)


def test_sizes_put_numbers_in_the_place_of_symbols():
    sizes = Sizes(T=5, B=2, R=3, context_tokens=9, pairs=12)
    assert [sizes.of(dim) for dim in (Symbol.T, Symbol.B, Symbol.R, 7)] == [5, 2, 3, 7]
    assert sizes.count((Symbol.T, 4, 2)) == 40
    assert sizes.count(()) == 1
    assert trailing((Symbol.T, 4, 2)) == 8
    with pytest.raises(ValueError, match="only the first may be"):
        trailing((4, Symbol.T))


@given(st.integers(1, 9), st.integers(1, 40))
def test_scores_of_a_step_are_a_rectangle(batch, tokens):
    sizes = Sizes.prefill(batch, tokens)
    assert sizes.of(Symbol.TS) == batch * tokens * tokens
    assert sizes.of(Symbol.S) == batch * tokens
    assert sizes.of(Times(7)) == 7 * batch
    assert Sizes.decode(batch, tokens).of(Symbol.TS) == batch * tokens
    ragged = Sizes(T=10, B=2, R=2, context_tokens=40, pairs=316)
    assert ragged.of(Symbol.TS) >= ragged.pairs
    assert Sizes(0, 0, 0, 0, 0).of(Symbol.TS) == 0


def test_errors_print_as_one_sentence():
    plain = errors.UsageError("--kv", "12 is too small", "give 16 or more")
    assert str(plain) == "[--kv] 12 is too small; give 16 or more"
    assert (plain.where, plain.fact, plain.remedy) == ("--kv", "12 is too small", "give 16 or more")
    assert str(errors.NotFoundError("expert", "ada is unknown")) == "[expert] ada is unknown"


def test_capacity_errors_say_demand_bound_and_levers():
    error = errors.CapacityError("dram", "expert ada", 3 * 2**30, 2**30, ["raise --dram", "drop an expert"])
    assert str(error) == "[dram] expert ada needs 3.00 GiB but 1.00 GiB can be had; raise --dram or drop an expert"
    assert (error.demand_bytes, error.bound_bytes) == (3 * 2**30, 2**30)


@pytest.mark.parametrize("again", [errors.fresh, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize(
    "error",
    [
        errors.TransferError("a", "b", "c"),
        errors.OversizeError("kv", "a context", 3, 2, ["ask for less"]),
        errors.CrowdedError("queue", 5, 4, 1),
    ],
)
def test_errors_can_be_made_again(error, again):
    """By whoever raises one that is kept, and in another process."""
    try:
        raise error
    except errors.CoterieError:
        made = again(error)
    assert (type(made), str(made), vars(made)) == (type(error), str(error), vars(error))
    assert (made.__traceback__, made is error) == (None, False)


def test_the_error_tree_is_the_one_that_is_drawn():
    """Each name in the docstring's tree stands under the class that it inherits from."""
    above: list[str] = []
    drawn = [line for line in (errors.__doc__ or "").splitlines() if "Error " in line and line.startswith((" ", "Cot"))]
    for line in drawn:
        name = next(word for word in line.split() if word.endswith("Error"))
        depth = (line.index(name) - 4) // 4
        above[depth:] = [name]
        parent = above[depth - 1] if depth else "Exception"
        assert getattr(errors, name).__base__.__name__ == parent
    assert len(drawn) == sum(isinstance(item, type) and issubclass(item, Exception) for item in vars(errors).values())


@given(st.integers(1, 9), st.integers(1, 40))
def test_a_prefill_is_what_its_sequences_add_up_to(batch, tokens):
    sizes = Sizes.prefill(batch, tokens)
    assert (sizes.T, sizes.B, sizes.R, sizes.context_tokens) == (batch * tokens, batch, batch, batch * tokens)
    assert sizes.pairs == batch * sum(position + 1 for position in range(tokens))


@given(st.integers(1, 9), st.integers(1, 40))
def test_prefilling_token_by_token_computes_the_pairs_of_one_prefill(batch, tokens):
    steps = [Sizes.decode(batch, context) for context in range(1, tokens + 1)]
    whole = Sizes.prefill(batch, tokens)
    assert sum(step.pairs for step in steps) == whole.pairs
    assert sum(step.T for step in steps) == whole.T
    assert steps[-1].context_tokens == whole.context_tokens
    assert all(step.T == step.B == step.R == batch for step in steps)


def test_what_is_computed_of_a_prompt_and_what_was_before_are_the_whole_one():
    for before, tokens, batch in ((0, 1, 1), (1, 1, 3), (13, 29, 2), (1, 128, 1)):
        rest, whole = Sizes.continued(batch, tokens, before), Sizes.prefill(batch, before + tokens)
        assert rest.context_tokens == whole.context_tokens == batch * (before + tokens)
        first = Sizes.prefill(batch, before) if before else Sizes(0, 0, 0, 0, 0)
        assert (first.T + rest.T, first.pairs + rest.pairs) == (whole.T, whole.pairs)


@pytest.mark.parametrize("made", [Sizes.prefill, Sizes.decode])
def test_a_step_of_nothing_is_named(made):
    with pytest.raises(ValueError, match="batch is 0"):
        made(0, 5)
    with pytest.raises(ValueError, match="is -3, but a step has at least 1"):
        made(2, -3)


def test_counts_are_of_one_or_of_many() -> None:
    assert [format_count(count, "expert") for count in (0, 1, 2)] == ["0 experts", "1 expert", "2 experts"]
