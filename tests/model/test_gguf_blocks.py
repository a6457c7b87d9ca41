"""Blocks of GGUF as packed rows: the same codes; of scales and zeros what bfloat16 does not hold is lost, no more."""

import ctypes
import importlib
from pathlib import Path

import numpy as np
import pytest

from coterie.core.dtypes import DType
from coterie.core.packed import unpack
from coterie.models.gguf.blocks import codes_kept, packed_codes

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[gguf]'")

ROWS, COLUMNS = 6, 512
TYPES = {"Q4_0": DType.Q4, "Q4_1": DType.Q4Z, "Q4_K": DType.Q4Z, "TQ1_0": DType.Q4, "TQ2_0": DType.Q4}
TYPES |= {**dict.fromkeys(("Q3_K", "Q5_0", "Q6_K"), DType.Q6), "MXFP4": DType.MX4}
BF16 = np.array([0.5, -0.0625, 3.0, 0.01171875, 0.0], np.float16)  # numbers of at most 8 bits


def worth(rows, kind):
    return np.asarray(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind]), np.float32)


def six_bits(scales, least):
    """Eight numbers of 6 bits twice, in 12 bytes: the last four have their upper 2 bits above those of the first."""
    out = np.zeros(12, np.uint8)
    for i in range(4):
        out[i] = scales[i] | scales[i + 4] >> 4 << 6
        out[4 + i] = least[i] | least[i + 4] >> 4 << 6
        out[8 + i] = scales[i + 4] & 15 | (least[i + 4] & 15) << 4
    return out


def made_up(kind, rng):
    """Rows whose scales and zeros are bfloat16 numbers, groups without a scale among them."""
    groups = COLUMNS // 32
    if kind in ("Q6_K", "Q3_K"):
        size = {"Q6_K": 210, "Q3_K": 110}[kind]
        numbers = rng.integers(0, 256, (ROWS * groups // 8, size), np.uint8)
        numbers[:, size - 2 :] = rng.choice(BF16, (len(numbers), 1)).view(np.uint8)
        return numbers.reshape(ROWS, -1)
    if kind == "MXFP4":
        found = rng.integers(0, 256, (ROWS, groups, 17), np.uint8)
        found[..., 0] = rng.choice([0, 1, 2, 126, 127, 250], (ROWS, groups))  # float32 holds six times the largest
        return found.reshape(ROWS, -1)
    if kind == "Q5_0":  # scales that 8 bits hold beside a block's largest
        scales = rng.integers(-127, 128, (ROWS * groups, 1)).astype(np.float16)
        scales[::8] = 127
        return np.concatenate([scales.view(np.uint8), rng.integers(0, 256, (len(scales), 20), np.uint8)], 1).reshape(
            ROWS, -1
        )
    if kind != "Q4_K":
        found = []
        for _ in range(ROWS * groups):
            scale = np.float16(2.0 ** rng.integers(-9, 3)) * rng.choice([1, -1, 0])
            numbers = [scale] if kind == "Q4_0" else [scale, rng.choice(BF16)]
            found += [np.array(numbers, np.float16).view(np.uint8), rng.integers(0, 256, 16, np.uint8)]
        return np.concatenate(found).reshape(ROWS, -1)
    found = []
    for _ in range(ROWS * groups // 8):
        numbers = np.array([rng.choice(BF16), 2.0 ** rng.integers(-9, 3)], np.float16)
        scales = rng.choice([0, 1, 2, 4, 8, 16, 32], 8)
        numbers[0] = 2.0 ** rng.integers(-9, 3)  # so that a zero, least over scale, has the 6 bits of the least
        found += [numbers.view(np.uint8), six_bits(scales, rng.integers(0, 64, 8)), rng.integers(0, 256, 128, np.uint8)]
    return np.concatenate(found).reshape(ROWS, -1)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q3_K", "Q5_0", "Q6_K", "MXFP4"])
def test_what_bfloat16_holds_is_the_same_number(kind):
    rng = np.random.default_rng(0)
    for _ in range(5):
        rows = made_up(kind, rng)
        exact = worth(rows, kind)
        packed = packed_codes(kind, rows, exact)
        dtype = TYPES[kind]
        assert codes_kept(kind) is dtype
        np.testing.assert_array_equal(unpack(packed, dtype, COLUMNS), exact)


def quantised(values, kind):
    """Rows of blocks as ggml's own quantiser makes them."""
    llama_cpp = importlib.import_module("llama_cpp")
    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))))
    number = gguf.GGMLQuantizationType[kind]
    weights, block = gguf.GGML_QUANT_SIZES[number]
    rows, columns = values.shape
    out = np.zeros((rows, columns // weights * block), np.uint8)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    library.ggml_quantize_chunk(int(number), values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    return out


LOST = {"Q4_0": 0.003, "Q4_1": 0.005, "Q4_K": 0.005, "TQ1_0": 0.003, "Q5_0": 0.006, "Q6_K": 0.003, "Q3_K": 0.003}
LOST["MXFP4"] = 0.0


@pytest.mark.parametrize(("kind", "most"), LOST.items())
@pytest.mark.parametrize("spread", ["normal", "wide", "apart", "flat"])
def test_ggml_s_own_blocks_lose_what_scales_lose_in_bfloat16(kind, most, spread):
    """Of weights far from zero beside their spread, as of all others: 2^-8 of scale and zero at most."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    rng = np.random.default_rng(1)
    values = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    if spread == "wide":
        values *= 10.0 ** rng.uniform(-4, 2, (ROWS, COLUMNS)).astype(np.float32)
    if spread == "apart":
        values = values * np.float32(0.01) + np.float32(1)
    if spread == "flat":
        values[:, : COLUMNS // 2] = 0
        values[:, COLUMNS // 2 :] = np.float32(-0.3)
    rows = quantised(np.ascontiguousarray(values), kind)
    before = worth(rows, kind)
    after = unpack(packed_codes(kind, rows, before), TYPES[kind], COLUMNS)
    rms = np.sqrt(np.mean(before.astype(np.float64) ** 2))
    lost = np.sqrt(np.mean((after.astype(np.float64) - before) ** 2))
    assert lost <= most * rms * (2 if spread == "wide" else 1)
    group = 256 if kind == "Q5_0" else 32  # of which scales are numbers of 8 bits beside the largest
    reach = np.abs(before).reshape(ROWS, -1, group).max(axis=-1, keepdims=True)
    assert (np.abs(after - before).reshape(ROWS, -1, group) <= 2.0**-7 * reach).all()


def test_a_scale_that_is_no_number_is_refused():
    rows = made_up("Q4_K", np.random.default_rng(0))
    rows[2, :2] = np.array([np.inf], np.float16).view(np.uint8)
    with np.errstate(all="ignore"):
        values = worth(rows, "Q4_K")
    with pytest.raises(ValueError, match="are not finite numbers in bfloat16"):
        packed_codes("Q4_K", rows, values)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_K", "Q5_1", "Q2_K", "IQ4_NL", "F16"])
def test_no_type_holds_the_codes_of_others(kind):
    assert codes_kept(kind) is None
