"""From an instruction row to a launch: the opcode's kernel, its grid for the bucket, constants of the host's row.

Knows nothing about streams, CUDA graphs or what the rows compute together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from coterie.core.errors import UnsupportedError
from coterie.kernels.cpu import I64, OPCODES
from coterie.kernels.triton import (
    elementwise,
    embed,
    layer_norm,
    mul_part,
    mul_row,
    norm_add,
    rms_norm,
    sample,
    sigmoid,
    take_rows,
    xielu,
)
from coterie.kernels.triton.attention import attention, kv_append, norm_rope_append, rope
from coterie.kernels.triton.branch import add_branch_bias, branch_down, branch_gate_up, choose_branches
from coterie.kernels.triton.bucket import Bucket
from coterie.kernels.triton.latent import latent_append, latent_attention, latent_queries, latent_values
from coterie.kernels.triton.product import (
    linear,
    linear_add,
    linear_each,
    norm_gate_up_silu_mul,
    norm_linear_gelu,
    norm_qkv_rope_append,
    take_norm_linear,
)
from coterie.kernels.triton.product.descriptor_memory import DescriptorMemory
from coterie.kernels.triton.recurrent import causal_conv, gated_delta, group_norm, net_parts, selective_scan
from coterie.kernels.triton.rows import ALIGN_BYTES, Call, Launch, name_of
from coterie.kernels.triton.tiles import H100, Tiles

__all__ = ["ALIGN_BYTES", "H100", "Bucket", "Tiles", "check_aligned", "launch", "launches", "scratch_bytes"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """How an instruction is launched, and the scratch that it needs while it runs."""

    launch: Callable[[Call], None]
    scratch_bytes: Callable[[Call], int] = lambda call: 0


KERNELS: Mapping[str, Kernel] = {
    "embed": Kernel(embed.launch),
    "rms_norm": Kernel(rms_norm.launch),
    "layer_norm": Kernel(layer_norm.launch),
    "linear": Kernel(linear.launch, linear.scratch_bytes),
    "rope": Kernel(rope.launch),
    "kv_append": Kernel(kv_append.launch),
    "attention": Kernel(attention.launch, attention.scratch_bytes),
    "relative_attention": Kernel(attention.launch, attention.scratch_bytes),
    "add": Kernel(elementwise.launch),
    "silu": Kernel(elementwise.launch),
    "mul": Kernel(elementwise.launch),
    "gelu": Kernel(elementwise.launch),
    "softcap": Kernel(elementwise.launch),
    "relu_squared": Kernel(elementwise.launch),
    "mul_one": Kernel(elementwise.launch),
    "mul_part": Kernel(mul_part.launch),
    "mul_row": Kernel(mul_row.launch),
    "xielu": Kernel(xielu.launch),
    "take_rows": Kernel(take_rows.launch),
    "sample": Kernel(sample.launch),
    "norm_qkv_rope_append": Kernel(norm_qkv_rope_append.launch, norm_qkv_rope_append.scratch_bytes),
    "norm_rope_append": Kernel(norm_rope_append.launch),
    "norm_add": Kernel(norm_add.launch),
    "linear_add": Kernel(linear_add.launch, linear_add.scratch_bytes),
    "linear_each": Kernel(linear_each.launch, linear_each.scratch_bytes),
    "linear_add_each": Kernel(linear_each.launch, linear_each.scratch_bytes),
    "norm_gate_up_silu_mul": Kernel(norm_gate_up_silu_mul.launch, norm_gate_up_silu_mul.scratch_bytes),
    "norm_gate_up_gelu_mul": Kernel(norm_gate_up_silu_mul.launch, norm_gate_up_silu_mul.scratch_bytes),
    "norm_linear_gelu": Kernel(norm_linear_gelu.launch, norm_linear_gelu.scratch_bytes),
    "take_norm_linear": Kernel(take_norm_linear.launch, take_norm_linear.scratch_bytes),
    "choose_branches": Kernel(choose_branches.launch, choose_branches.scratch_bytes),
    "branch_gate_up": Kernel(branch_gate_up.launch, branch_gate_up.scratch_bytes),
    "branch_gate_up_gelu": Kernel(branch_gate_up.launch, branch_gate_up.scratch_bytes),
    "branch_gate_up_clipped": Kernel(branch_gate_up.launch, branch_gate_up.scratch_bytes),
    "branch_down": Kernel(branch_down.launch, branch_down.scratch_bytes),
    "branch_down_add": Kernel(branch_down.launch, branch_down.scratch_bytes),
    "add_branch_bias": Kernel(add_branch_bias.launch),
    "causal_conv": Kernel(causal_conv.launch),
    "net_parts": Kernel(net_parts.launch),
    "gated_delta": Kernel(gated_delta.launch, gated_delta.scratch_bytes),
    "gated_delta_norm": Kernel(gated_delta.launch, gated_delta.scratch_bytes),
    "selective_scan": Kernel(selective_scan.launch),
    "selective_scan_gate": Kernel(selective_scan.launch),
    "group_norm": Kernel(group_norm.launch),
    "latent_append": Kernel(latent_append.launch),
    "latent_queries": Kernel(latent_queries.launch),
    "latent_attention": Kernel(latent_attention.launch, latent_attention.scratch_bytes),
    "latent_values": Kernel(latent_values.launch, latent_values.scratch_bytes),
    "sigmoid": Kernel(sigmoid.launch, sigmoid.scratch_bytes),
    "sigmoid_mul": Kernel(sigmoid.launch, sigmoid.scratch_bytes),
}


def launch(
    host_rows: I64, rows: torch.Tensor, index: int, bucket: Bucket, scratch: torch.Tensor, tiles: Tiles = H100
) -> None:
    """Launch row `index` of a program on the current stream; see `launches`."""
    for start in launches(host_rows, rows, index, bucket, scratch, tiles):
        start()


def launches(
    host_rows: I64,
    rows: torch.Tensor,
    index: int,
    bucket: Bucket,
    scratch: torch.Tensor,
    tiles: Tiles = H100,
    descriptors: DescriptorMemory | None = None,
) -> list[Launch]:
    """Launches of row `index` of a program on the current stream, valid as long as `rows` and `scratch` stay in place.

    `host_rows` and `rows` agree in sizes and types; kernels read addresses from `rows`, which is on the GPU. `scratch`
    is GPU memory that the rows of a program use in turn; one may leave something in it for the next (staged_ahead.py).
    `descriptors` is shared by all launches of a GPU, which must be found in launch order. Raises UnsupportedError for
    rounded activations.
    """
    call = _call(host_rows, index, rows[index], bucket, scratch, tiles, descriptors or DescriptorMemory())
    KERNELS[call.name].launch(call)
    return call.launches


def scratch_bytes(host_rows: I64, bucket: Bucket, tiles: Tiles = H100) -> int:
    """Most scratch that any row of a program needs.

    Raises UnsupportedError for rounded activations, and for a row without a kernel.
    """
    none = torch.empty(0, dtype=torch.uint8)
    calls = (_call(host_rows, index, none, bucket, none, tiles, DescriptorMemory()) for index in range(len(host_rows)))
    return max((_kernel(call.name).scratch_bytes(call) for call in calls), default=0)


def _kernel(name: str) -> Kernel:
    found = KERNELS.get(name)
    if found is None:
        fact = f"none of them does {name}, which this architecture wants"
        raise UnsupportedError("the GPU's kernels", fact, "use --device cpu")
    return found


def check_aligned(rows: I64) -> None:
    """Raise ValueError naming an operand that is not aligned to 16 bytes: the GPU would fault, and not recover."""
    for row in rows:
        name = name_of(row)
        for operand in sorted(OPCODES[name].addresses):
            address = int(row[OPCODES[name].words[operand]])
            if address % ALIGN_BYTES:
                raise ValueError(
                    f"{operand} of {name} is at {address}, no multiple of {ALIGN_BYTES}; align it when placed"
                )


def _call(
    host_rows: I64,
    index: int,
    row: torch.Tensor,
    bucket: Bucket,
    scratch: torch.Tensor,
    tiles: Tiles,
    descriptors: DescriptorMemory,
) -> Call:
    def call(i: int, before: Call | None = None, after: Call | None = None) -> Call:
        name, beside = name_of(host_rows[i]), (host_rows[:i], host_rows[i + 1 :])
        return Call(name, host_rows[i], row, bucket, scratch, tiles, descriptors, before, after, *beside)

    before = call(index - 1) if index > 0 else None
    return call(index, before, call(index + 1) if index + 1 < len(host_rows) else None)
