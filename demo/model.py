"""A Llama-shaped transformer small enough to train on one CPU core.

Knows nothing about tasks, files or tokenizers: token ids in, logits out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """The one architecture that every demo expert has, so that they share one program."""

    vocab_size: int = 260
    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 3
    num_heads: int = 4
    max_positions: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads


@dataclass(slots=True)
class Cache:
    """One layer's keys and values [B, H, S, C], filled in place."""

    keys: Tensor
    values: Tensor


def rope_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, head_dim] in the half-rotation order of Hugging Face's Llama."""
    inverse = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    angles = torch.outer(torch.arange(shape.max_positions, dtype=torch.float32), inverse)
    both = torch.cat([angles, angles], dim=-1)
    return both.cos(), both.sin()


def rotate(x_BHTC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [B, H, T, C] by tables [T, C]."""
    left, right = x_BHTC.chunk(2, dim=-1)
    return x_BHTC * cos + torch.cat([-right, left], dim=-1) * sin


class _LinearBf16(torch.autograd.Function):
    """x @ w.T with bf16 operands and fp32 results in all three products: thrice the speed of fp32 on AVX512-BF16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        x16, w16 = x.to(torch.bfloat16), w.to(torch.bfloat16)
        ctx.save_for_backward(x16, w16)
        return (x16 @ w16.t()).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x16, w16 = ctx.saved_tensors
        g16 = grads[0].to(torch.bfloat16)
        return (g16 @ w16).float(), (g16.t() @ x16).float()


def _multiplies_bf16() -> bool:
    """Whether this CPU does; one that does not takes nine times as long as with fp32."""
    file = Path("/proc/cpuinfo")
    return file.exists() and "avx512_bf16" in file.read_text(encoding="utf-8")


_BF16 = _multiplies_bf16()


def linear(x_ND: Tensor, w_FD: Tensor) -> Tensor:
    """Rows x [N, D] times weight [F, D]: bf16 while training, where the CPU multiplies that, fp32 otherwise."""
    if _BF16 and torch.is_grad_enabled():
        return cast(Tensor, _LinearBf16.apply(x_ND, w_FD))  # type: ignore[no-untyped-call]
    return F.linear(x_ND, w_FD)


class Layer(nn.Module):
    """One decoder layer; parameter names are those of Hugging Face's LlamaDecoderLayer, flattened on export."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, f = shape.hidden_size, shape.intermediate_size
        self.num_heads, self.eps = shape.num_heads, shape.norm_eps
        self.input_layernorm = nn.Parameter(torch.ones(d))
        self.post_attention_layernorm = nn.Parameter(torch.ones(d))
        self.qkv_proj = nn.ParameterList([nn.Parameter(torch.randn(d, d) * d**-0.5) for _ in range(3)])
        self.o_proj = nn.Parameter(torch.zeros(d, d))
        self.gate_proj = nn.Parameter(torch.randn(f, d) * d**-0.5)
        self.up_proj = nn.Parameter(torch.randn(f, d) * d**-0.5)
        self.down_proj = nn.Parameter(torch.zeros(d, f))

    def forward(self, x_ND: Tensor, b: int, cos: Tensor, sin: Tensor, rows_M: Tensor | None = None) -> Tensor:
        """The layer's output for x [B*T, D], or for its wanted rows only; attention is causal over each row of B."""
        n, d = x_ND.shape
        h = F.rms_norm(x_ND, (d,), self.input_layernorm, self.eps)
        qkv = linear(h, torch.cat(list(self.qkv_proj)))
        q, k, v = qkv.view(b, n // b, 3 * self.num_heads, -1).transpose(1, 2).chunk(3, dim=1)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(n, d)
        if rows_M is not None:
            x_ND, mixed = x_ND[rows_M], mixed[rows_M]
        x_ND = x_ND + linear(mixed, self.o_proj)
        h = F.rms_norm(x_ND, (d,), self.post_attention_layernorm, self.eps)
        gate, up = linear(h, torch.cat([self.gate_proj, self.up_proj])).chunk(2, dim=-1)
        return x_ND + linear(F.silu(gate) * up, self.down_proj)

    def step(self, x_BD: Tensor, cache: Cache, lengths_B: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The layer's output for one new token a row, whose key and value go to position `lengths` of the cache."""
        b, d = x_BD.shape
        h = F.rms_norm(x_BD, (d,), self.input_layernorm, self.eps)
        q, k, v = (F.linear(h, w).view(b, self.num_heads, 1, -1) for w in self.qkv_proj)
        rows, turn = torch.arange(b), (cos[lengths_B][:, None, None], sin[lengths_B][:, None, None])
        cache.keys[rows, :, lengths_B] = rotate(k, *turn)[:, :, 0]
        cache.values[rows, :, lengths_B] = v[:, :, 0]
        seen_B11S = (torch.arange(cache.keys.shape[2]) <= lengths_B[:, None])[:, None, None]
        mixed = F.scaled_dot_product_attention(rotate(q, *turn), cache.keys, cache.values, attn_mask=seen_B11S)
        x_BD = x_BD + F.linear(mixed.reshape(b, d), self.o_proj)
        h = F.rms_norm(x_BD, (d,), self.post_attention_layernorm, self.eps)
        return x_BD + F.linear(F.silu(F.linear(h, self.gate_proj)) * F.linear(h, self.up_proj), self.down_proj)


class TinyLlama(nn.Module):
    """Tied embeddings, RMSNorm, rotary attention, SwiGLU."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.05)
        self.layers = nn.ModuleList([Layer(shape) for _ in range(shape.num_layers)])
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, tokens_BT: Tensor, rows_M: Tensor | None = None) -> Tensor:
        """Final normed hidden states [B*T, D] of token ids [B, T], or those of the wanted rows [M, D] only.

        A row that no loss looks at needs keys and values in the last layer, and nothing after them.
        """
        b, t = tokens_BT.shape
        x = F.embedding(tokens_BT.flatten(), self.embed_tokens)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, b, self.cos[:t], self.sin[:t], rows_M if i == last else None)
        return F.rms_norm(x, (self.shape.hidden_size,), self.norm, self.shape.norm_eps)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        return F.linear(self.hidden(tokens_BT), self.embed_tokens).view(*tokens_BT.shape, -1)

    def caches(self, rows: int, positions: int) -> list[Cache]:
        """Empty caches of all layers."""
        size = (rows, self.shape.num_heads, positions, self.shape.head_dim)
        return [Cache(torch.zeros(size), torch.zeros(size)) for _ in self.layers]

    def step(self, tokens_B: Tensor, caches: list[Cache], lengths_B: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row."""
        x = F.embedding(tokens_B, self.embed_tokens)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = cast(Layer, layer).step(x, cache, lengths_B, self.cos, self.sin)
        return F.linear(F.rms_norm(x, (self.shape.hidden_size,), self.norm, self.shape.norm_eps), self.embed_tokens)
