"""Building blocks of kernels: operands from rows, units of work, rounding, tensor-core products, activations.

Knows nothing about any particular op.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import GELU_FORMS

# Triton's interpreter (3.9) truncates float32 to bfloat16 instead of rounding it, and multiplies bfloat16 as integers.
# Under it, these two operations are spelled out; on a GPU, one instruction each does the same.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# When a kernel runs: after all earlier ones have ended; launched while the previous one still runs; or ahead of its
# turn, only to prefetch the weights that it will need.
NOW, EARLY, AHEAD = (tl.constexpr(i) for i in range(3))
MASKED = tl.constexpr(float("-inf"))  # the score of a masked position


@triton.jit
def pointer(row, WORD: tl.constexpr, TYPE: tl.constexpr):
    """The pointer in an operand word. Everything is aligned to 16 bytes, as vectorised loads need."""
    return tl.multiple_of(tl.load(row + WORD).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def integer(row, WORD: tl.constexpr):
    """An operand that is a size or index and fits 32 bits."""
    return tl.load(row + WORD).to(tl.int32)


@triton.jit
def real(row, WORD: tl.constexpr):
    """An operand that the row holds as the bits of a double."""
    return tl.load(row + WORD).to(tl.float64, bitcast=True)


@triton.jit
def unit_index(unit, AXIS: tl.constexpr):
    """Index of a unit of work along an axis of its kernel's grid.

    Kernels with a parameter `unit` either run alone, with one unit per program of the launch, or are called by the
    persistent kernel (persistent.py), which passes the unit.
    """
    if unit is None:
        place = tl.program_id(AXIS)
    else:
        place = unit[AXIS]
    return place


@triton.jit
def launch_dependents(WHEN: tl.constexpr):
    """Let the next launch begin where there is room, though this one still runs (programmatic dependent launch)."""
    if WHEN == EARLY and not INTERPRETED:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous(WHEN: tl.constexpr):
    """Wait until the previous launch has ended and its stores are visible.

    An early launch must call this, in all of its programs: otherwise it could end before the previous launch does, and
    the next one would begin too soon. Before the wait, a program may read only what no launch of a step changes: sizes,
    addresses, positions, block tables, weights, old keys and values. `feed` changes some of these between steps, so
    neither it nor `embed` after it begins early or lets the next launch begin.
    """
    if WHEN == EARLY and not INTERPRETED:
        tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch(at, there=None):
    """Prefetch these addresses to L2, where `there` is true, without waiting.

    Each address once: thousands of programs prefetching one line, such as an instruction's row, double a step's time.
    """
    if there is None:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred there; setp.ne.b32 there, $2, 0; @there prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
            "=r,l,r", [at, there.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def narrow(x, TYPE: tl.constexpr):
    """Round float32 to the nearest value of TYPE, ties to even; values that have this type stay as they are."""
    if x.dtype == TYPE:
        y = x
    elif INTERPRETED and TYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True).to(tl.uint64)
        half = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        y = half.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(TYPE)
    return y


@triton.jit
def add_product(acc, a, b):
    """acc + a @ b, multiplied in the type of a and b, accumulated in float32."""
    tl.static_assert(a.dtype == b.dtype, "tensor cores multiply values of one type")
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def silu_of(x):
    """x * sigmoid(x)."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def softplus_of(x):
    """log(1 + exp(x)), within a few bits even where it is close to exp(x): heads with slow decay depend on it."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    return tl.maximum(x, 0.0) + tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def tanh_of(x):
    """tanh(x): near 0 by the fifth convergent of Lambert's continued fraction, else by the exponential."""
    z = x * x
    near = x * (945.0 + z * (105.0 + z)) / (945.0 + z * (420.0 + z * 15.0))
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.75, near, tl.where(x < 0, -far, far))


@triton.jit
def softcap_of(x, cap):
    """cap * tanh(x / cap)."""
    return cap * tanh_of(x / cap)


# Forms of gelu, by their numbers in a row.
ERF, TANH, SIGMOID = (tl.constexpr(GELU_FORMS.index(form)) for form in ("erf", "tanh", "sigmoid"))


@triton.jit
def gelu_of(x, FORM: tl.constexpr):
    """x * Phi(x), with Phi in one of three forms."""
    if FORM == ERF:
        y = x * (0.5 + 0.5 * tl.erf(x * 0.7071067811865476))
    elif FORM == TANH:
        y = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    else:
        y = x / (1.0 + tl.exp(-1.702 * x))
    return y
