"""Calls native kernels by operand name, with weights at odd addresses, and the plain NumPy that they are compared with.

Knows nothing about graphs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.packed import MAX_INT8, MAX_INT16
from coterie.kernels import cpu as kernels

WEIGHT_DTYPES = (DType.F32, DType.F16, DType.BF16)
KEPT_DTYPES = (*WEIGHT_DTYPES, DType.KV8)


@dataclass
class Weight:
    """A tensor as in a file: any type, any address. `values` are exactly what is stored, as float32."""

    values: np.ndarray
    dtype: DType
    memory: np.ndarray

    @property
    def address(self):
        return kernels.address(self.memory)

    def operand(self, name, most=MAX_INT16):
        """Address and type; a packed one meets whole numbers up to `most`."""
        dtype = kernels.dtype_number(self.dtype, rounded=self.dtype.is_packed and most == MAX_INT8)
        return {name: self.address, f"{name}_dtype": dtype}


def weight(rng, shape, dtype, center=0.0, scale=None):
    """A random weight at an odd address."""
    scale = scale if scale is not None else 1 / np.sqrt(shape[-1])
    return stored((center + scale * rng.standard_normal(shape)).astype(np.float32), dtype)


def stored(values, dtype):
    """These numbers as a weight at an odd address."""
    bits = from_f32(values, dtype)
    memory = np.zeros(bits.nbytes + 64, dtype=np.uint8)
    start = 1 - kernels.address(memory) % 2
    memory[start : start + bits.nbytes] = np.frombuffer(bits.tobytes(), dtype=np.uint8)
    return Weight(to_f32(bits, dtype), dtype, memory[start : start + bits.nbytes])


def absent(name):
    """No bias, no norm."""
    return {name: 0, f"{name}_dtype": 0}


def optional(name, tensor):
    return tensor.operand(name) if tensor is not None else absent(name)


SCALED = ("embed", "linear", "linear_add", "linear_each", "linear_add_each", "take_norm_linear")
NORMING = (
    "rms_norm",
    "norm_add",
    "norm_rope_append",
    "norm_qkv_rope_append",
    "norm_gate_up_silu_mul",
    "norm_linear_gelu",
    "take_norm_linear",
)
CENTRING = (
    *("norm_qkv_rope_append", "norm_gate_up_silu_mul", "norm_gate_up_gelu_mul", "norm_linear_gelu"),
    *("take_norm_linear", "norm_add"),
)
FREE_CHOICE = {"sigmoid": 0, "least_sum": 0.0, "groups": 0, "taken_groups": 0, "group_best": 0}
FREE_CHOICE["added_sum"] = 0.0  # by a softmax
ROTATING = ("rope", "norm_qkv_rope_append", "norm_rope_append")


def whole(kernel, operands):
    """The operands of a kernel; those left out change nothing: a scale of 1, no offset or cap, all channels rotated.

    A norm is an RMS norm.
    """
    neutral = {"scale": 1.0} if kernel in SCALED else {}
    neutral |= {"offset": 0.0} if kernel in NORMING else {}
    neutral |= absent("factor") if kernel == "norm_add" else {}
    neutral |= absent("norm_bias") | {"centred": 0} if kernel in CENTRING else {}
    neutral |= {"rotated": operands["C"], "interleaved": 0} if kernel in ROTATING else {}
    if kernel in ("attention", "relative_attention"):
        neutral |= {"cap": 0.0, "growth": 0.0, "every": 1, **absent("sinks")}
    neutral |= {"plain": 0, **absent("bias")} if kernel == "causal_conv" else {}
    neutral |= absent("bias") | absent("factors") | FREE_CHOICE if kernel == "choose_branches" else {}
    apart = {"rms_norm": "x", "norm_rope_append": "q"}.get(kernel)
    neutral |= {f"{apart}_first": 0, f"{apart}_step": 0} if apart else {}
    return neutral | operands


def row_of(kernel, operands):
    """An instruction; arrays stand for their addresses. They must be what the kernel reads, in type and order."""
    operands = whole(kernel, operands)
    for name, value in operands.items():
        if isinstance(value, np.ndarray):
            assert value.flags.c_contiguous, name
            operands[name] = kernels.address(value)
    return kernels.encode(kernel, operands).reshape(1, -1)


def call(team, kernel, **operands):
    """Run one instruction."""
    assert team.run(row_of(kernel, operands)) == 1


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def chosen(rng, T, E, taken):
    """Weights of which `taken` of each row are not 0; the last branch is nobody's where it can be."""
    y = np.zeros((T, E), np.float32)
    among = E - 1 if taken < E else E
    for row in y:
        row[rng.permutation(among)[:taken]] = rng.uniform(0.01, 1.0, taken)
    return y


def choice(logits, top_k, normalise, scale=1.0, bias=None, **how):
    """What choose_branches gives, in float64, token by token."""
    y = np.zeros(logits.shape)
    for x, row in zip(logits.astype(np.float64), y, strict=True):
        p = 1 / (1 + np.exp(-x)) if how.get("sigmoid") else np.exp(x - x.max())
        scores = p if how.get("sigmoid") else p / p.sum()
        ranked = x if bias is None and not how.get("groups") else scores + (0 if bias is None else bias)
        allowed = set(range(len(x)))
        if how.get("groups"):
            groups = np.split(np.arange(len(x)), how["groups"])
            best = [sum(sorted(ranked[group])[-how["group_best"] :]) for group in groups]
            first = sorted(range(len(groups)), key=lambda g, best=best: -best[g])[: how["taken_groups"]]
            allowed = {int(e) for g in first for e in groups[g]}
        taken = sorted(sorted(allowed), key=lambda e, ranked=ranked: -ranked[e])[:top_k]
        total = max(scores[taken].sum(), how.get("least_sum", 0)) + how.get("added_sum", 0) if normalise else 1
        row[taken] = np.maximum(scores[taken] / total * scale, 1e-30)
    return y


def empty(*shape):
    """Filled with NaN, so that what a kernel leaves out shows."""
    return np.full(shape, np.nan, dtype=np.float32)


def ints(values):
    return np.ascontiguousarray(values, dtype=np.int32)


def rms_norm(x, w, eps, offset=0.0):
    return x / np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True) + eps) * (w + offset)


def layer_norm(x, w, b, eps):
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float64)
    return centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + eps) * w + b


def xielu(x, alpha_p, alpha_n, beta, eps):
    """In float64."""
    x = x.astype(np.float64)
    above, below = np.logaddexp(0, alpha_p), beta + np.logaddexp(0, alpha_n)
    return np.where(x > 0, above * x * x, below * (np.expm1(np.minimum(x, eps)) - x)) + beta * x


def net_parts(qkvz, ba, key_heads, K, C):
    """q, k and v of all heads; z; a; b."""
    T, share = len(ba), ba.shape[1] // (2 * key_heads)
    q, k, v, z = np.split(qkvz.reshape(T, key_heads, -1), [K, 2 * K, 2 * K + share * C], axis=2)
    b, a = np.split(ba.reshape(T, key_heads, -1), 2, axis=2)
    x = np.concatenate([part.reshape(T, -1) for part in (q, k, v)], axis=1)
    return x, z.reshape(T, -1, C), a.reshape(T, -1), b.reshape(T, -1)


def clipped(gate, up, alpha, limit):
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return (up + 1) * gate / (1 + np.exp(-alpha * gate))


def silu(x):
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x.astype(np.float64)))


def gelu(x, form):
    wide = x.astype(np.float64)
    if form == "erf":
        return wide * 0.5 * (1 + np.frompyfunc(math.erf, 1, 1)(wide / math.sqrt(2)).astype(np.float64))
    inner = 0.851 * wide if form == "sigmoid" else math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    return wide * 0.5 * (1 + np.tanh(inner))


def softcap(x, cap):
    return cap * np.tanh(x.astype(np.float64) / cap)


def rope(x_THC, positions, inv_freq, scale, interleaved=False):
    angles = (positions[:, None].astype(np.float32) * inv_freq[None]).astype(np.float64)
    cos, sin = np.cos(angles)[:, None] * scale, np.sin(angles)[:, None] * scale
    half = len(inv_freq)
    a, b, rest = x_THC[..., :half], x_THC[..., half : 2 * half], x_THC[..., 2 * half :]
    if interleaved:
        a, b = x_THC[..., 0 : 2 * half : 2], x_THC[..., 1 : 2 * half : 2]
    turned = [a * cos - b * sin, b * cos + a * sin]
    both = (
        np.stack(turned, axis=-1).reshape(*a.shape[:-1], 2 * half) if interleaved else np.concatenate(turned, axis=-1)
    )
    return np.concatenate([both, rest], axis=-1)


def kept_bits(values, dtype):
    """Rows [.., C] as pages hold them: the bits of each number; of KV8 bytes, a bfloat16 scale before each 32 int8."""
    if dtype is not DType.KV8:
        return from_f32(values, dtype)
    *rows, C = values.shape
    padded = np.zeros((*rows, -(-C // 32) * 32), np.float32)
    padded[..., :C] = values
    padded = padded.reshape(*rows, -1, 32)
    most = np.abs(padded).max(-1, keepdims=True)
    bits = from_f32(most / np.float32(127), DType.BF16)
    scale = to_f32(bits, DType.BF16)
    usable = np.isfinite(scale) & (scale > 0)
    q = np.clip(np.rint(np.where(usable, padded / np.where(usable, scale, 1), 0)), -127, 127).astype(np.int8)
    return np.concatenate([bits.view(np.uint8), q.view(np.uint8)], axis=-1).reshape(*rows, -1)


def kept_numbers(bits, dtype, C):
    """The numbers [.., C] of rows as pages hold them."""
    if dtype is not DType.KV8:
        return to_f32(bits, dtype)
    blocks = np.ascontiguousarray(bits).reshape(*bits.shape[:-1], -1, 34)
    scale = to_f32(np.ascontiguousarray(blocks[..., :2]).view(np.uint16), DType.BF16)
    with np.errstate(invalid="ignore"):  # zeros times a scale that is infinite
        return (blocks[..., 2:].view(np.int8) * scale).reshape(*bits.shape[:-1], -1)[..., :C]


@dataclass
class Pages:
    """A KV slab of one program, with block tables of `num_sequences` in scattered blocks."""

    num_layers: int
    K: int
    C: int
    Z: int
    dtype: DType
    block_tables: np.ndarray
    memory: np.ndarray
    block_bytes: int
    rounded: bool = False  # whether what meets them is rounded to bfloat16

    @classmethod
    def make(cls, rng, num_sequences, context, *, K, C, Z=4, dtype=DType.BF16, num_layers=2):
        width = max(1, -(-context // Z))
        num_blocks = num_sequences * width + 3
        tables = rng.permutation(num_blocks)[: num_sequences * width].reshape(num_sequences, width)
        block_bytes = num_layers * 2 * K * Z * dtype.row_bytes(C) + 10
        memory = np.zeros(num_blocks * block_bytes, dtype=np.uint8)
        return cls(num_layers, K, C, Z, dtype, ints(tables), memory, block_bytes)

    def operands(self, positions, sequence, layer):
        return {
            "positions": positions,
            "sequence": sequence,
            "block_tables": self.block_tables,
            "table_width": self.block_tables.shape[1],
            "kv": self.memory,
            "kv_dtype": kernels.dtype_number(self.dtype, self.rounded),
            "block_bytes": self.block_bytes,
            "Z": self.Z,
            "layer": layer,
        }

    def view(self, block):
        """[layer, k or v, kv head, Z, C] bits of a block; of KV8 the bytes of a row in the place of C."""
        size = self.num_layers * 2 * self.K * self.Z * self.dtype.row_bytes(self.C)
        start = int(block) * self.block_bytes
        shape = (self.num_layers, 2, self.K, self.Z, -1)
        kind = np.uint8 if self.dtype is DType.KV8 else self.dtype.numpy
        return self.memory[start : start + size].view(kind).reshape(shape)

    def write(self, layer, sequence, position, k_KC, v_KC):
        page = self.view(self.block_tables[sequence, position // self.Z])
        page[layer, 0, :, position % self.Z] = kept_bits(k_KC, self.dtype)
        page[layer, 1, :, position % self.Z] = kept_bits(v_KC, self.dtype)

    def read(self, layer, sequence, length):
        """k and v [length, K, C] as float32."""
        pages = [self.view(self.block_tables[sequence, p // self.Z])[layer, :, :, p % self.Z] for p in range(length)]
        kv = kept_numbers(np.stack(pages), self.dtype, self.C)
        return kv[:, 0], kv[:, 1]


def attention(
    q_THC, pages, positions, sequence, layer, scale, window, cap=0.0, growth=0.0, every=1, sinks=None, biases=None
):
    """One token at a time, in float64; `sinks` has a score of no value for each head, `biases` [T, H, S]."""
    y = np.zeros(q_THC.shape)
    q_THC = q_THC * (1 + growth * np.log(1 + np.asarray(positions) // every))[:, None, None]
    group = q_THC.shape[1] // pages.K
    for t, (position, s) in enumerate(zip(positions, sequence, strict=True)):
        k, v = pages.read(layer, s, position + 1)
        first = max(0, position - window + 1) if window else 0
        for head in range(q_THC.shape[1]):
            scores = scale * (k[first:, head // group].astype(np.float64) @ q_THC[t, head])
            scores = softcap(scores, cap) if cap else scores
            scores = scores if biases is None else scores + biases[t][head, first : position + 1]
            scores = np.append(scores, -np.inf if sinks is None else sinks[head])
            p = np.exp(scores - scores.max())
            y[t, head] = (p / p.sum())[:-1] @ v[first:, head // group]
    return y


def linear(team, x, w, bias=None, most=MAX_INT16):
    """x @ w.T + bias by the kernel, [T, N]."""
    (T, K), N = x.shape, w.values.shape[0]
    y = empty(T, N)
    call(team, "linear", x=x, **w.operand("weight", most), **optional("bias", bias), y=y, T=T, N=N, K=K)
    return y
