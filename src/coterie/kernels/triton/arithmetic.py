"""Small parts of kernels: pointers out of rows, units of work, rounding to nearest, products on tensor cores, silu.

Knows nothing about any particular op.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import GELU_FORMS

# Triton's interpreter (3.9) cuts float32 to bfloat16 instead of rounding it, and multiplies the bits of bfloat16 as
# whole numbers. Where it runs, these two are written out; a GPU has an instruction for each that does the same.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# When a kernel is run: after all before it are over; launched while the one before it is still running; or before
# its turn, only to ask for the weights that it will need.
NOW, EARLY, AHEAD = (tl.constexpr(i) for i in range(3))
NOTHING = tl.constexpr(float("-inf"))  # the score of what is not seen


@triton.jit
def pointer(row, WORD: tl.constexpr, TYPE: tl.constexpr):
    """What an operand of a row points to. Everything is aligned to 16 bytes, which loads of several elements need."""
    return tl.multiple_of(tl.load(row + WORD).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def integer(row, WORD: tl.constexpr):
    """A size or index that fits 32 bits."""
    return tl.load(row + WORD).to(tl.int32)


@triton.jit
def real(row, WORD: tl.constexpr):
    """A number that the row holds as the bits of a double."""
    return tl.load(row + WORD).to(tl.float64, bitcast=True)


@triton.jit
def along(unit, AXIS: tl.constexpr):
    """Where a unit of work lies along an axis of its kernel's grid.

    Kernels with a parameter `unit` work alone, a unit for each program of a launch, or are told by one that walks rows
    (persistent.py) which unit is next.
    """
    if unit is None:
        place = tl.program_id(AXIS)
    else:
        place = unit[AXIS]
    return place


@triton.jit
def let_next_begin(WHEN: tl.constexpr):
    """Let the launch behind this one begin where there is room, though this one goes on."""
    if WHEN == EARLY and not INTERPRETED:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_last(WHEN: tl.constexpr):
    """Wait until the launch before this one is over and what it stored can be seen. An early launch must wait once.

    All of its programs, or it could be over before the one before it, and the next would begin too soon. Before, a
    program may read what no launch of a step changes: sizes, addresses, positions, block tables, weights, old keys and
    values. `feed` changes them between steps, and it is over before: neither it nor `embed` behind it begins early or
    lets the next begin.
    """
    if WHEN == EARLY and not INTERPRETED:
        tl.extra.cuda.gdc_wait()


@triton.jit
def ask(at, there=None):
    """Ask for what lies at these addresses, where it is there, into the second-level cache, and wait for nothing.

    Each address once: thousands of programs that ask for one line, as for an instruction's row, double a step's time.
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
    """Round float32 to the nearest of a type, ties to even; values of that type stay as they are."""
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
    """acc + a @ b, multiplied in the type of a and b and added in float32."""
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
    """log(1 + exp(x)), exact to a few bits also where that is nearly exp(x): a head that forgets slowly lives by it."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    return tl.maximum(x, 0.0) + tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def tanh_of(x):
    """tanh(x): near 0 the fifth convergent of Lambert's continued fraction, else by the exponential."""
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
    """x * Phi(x), Phi in a form."""
    if FORM == ERF:
        y = x * (0.5 + 0.5 * tl.erf(x * 0.7071067811865476))
    elif FORM == TANH:
        y = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    else:
        y = x / (1.0 + tl.exp(-1.702 * x))
    return y
