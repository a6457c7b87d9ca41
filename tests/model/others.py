"""Folders as GPTQ, AWQ, FP8 and compressed-tensors write them, made on the spot, and what their weights are worth.

Each format is written bit by bit, from the description of it, by loops that share nothing with what reads it. Knows
nothing about how they are read.
"""

import json
import re

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tests.model import compressed


def words(codes, bits, order=None):
    """Codes [R, C] in words [R, C * bits / 32]: number i of a word is column `order[i]` of its run."""
    each = 32 // bits
    rows, columns = codes.shape
    padded = np.zeros((rows, -(-columns // each) * each), np.int64)
    padded[:, :columns] = codes
    made = np.zeros((rows, padded.shape[1] // each), np.uint32)
    for word in range(made.shape[1]):
        for i in range(each):
            column = word * each + (order[i] if order else i)
            made[:, word] |= (padded[:, column] % 2**bits).astype(np.uint32) << np.uint32(bits * i)
    return torch.tensor(made.view(np.int32))


def scales_of(rng, shape, columns, dtype):
    return torch.tensor(rng.uniform(0.5, 1.5, shape) / (4 * columns**0.5)).to(dtype)


def rewrite(folder, section, quantise, dense=None, head=False):
    """Give `quantise(stem, rows, columns)` every matrix of the layers but `dense`: what to store, what it is worth.

    With `head` the head too.
    """
    worth, stored = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.ndim != 2 or re.search("embed" if head else "embed|lm_head", name) or (dense and dense in name):
            stored[name] = tensor
            continue
        stem = name.removesuffix(".weight")
        tensors, worth[name] = quantise(*tensor.shape)
        stored |= {f"{stem}.{kind}": t.contiguous() for kind, t in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    compressed.configure(folder, quantization_config=section)
    return worth


def gptq(folder, group=32, bits=4, zero=None, version=1, ordered=False, scales=torch.float16, g_idx=True, head=False):
    """`zero` None: of each group its own; `ordered`: columns belong to groups at random, as after desc_act."""
    rng = np.random.default_rng(1)

    def quantise(n, k):
        groups = 1 if group == -1 else -(-k // group)
        columns = np.arange(k) // (k if group == -1 else group)
        if ordered:
            rng.shuffle(columns)
        q = rng.integers(0, 2**bits, (k, n))
        z = rng.integers(1, 2**bits, (groups, n)) if zero is None else np.full((groups, n), zero)
        s = scales_of(rng, (groups, n), k, scales)
        tensors = {"qweight": words(q.T, bits).T, "qzeros": words(z - (version == 1), bits), "scales": s}
        tensors |= {"g_idx": torch.tensor(columns).int()} if g_idx else {}
        return tensors, ((q - z[columns]) * s.double().numpy()[columns]).T

    section = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered, "sym": zero is not None}
    return rewrite(folder, section | ({} if version == 1 else {"checkpoint_format": "gptq_v2"}), quantise, head=head)


def awq(folder, group=32, zero=None, scales=torch.float16):
    order, rng = [0, 2, 4, 6, 1, 3, 5, 7], np.random.default_rng(2)

    def quantise(n, k):
        groups = -(-k // group)
        q = rng.integers(0, 16, (k, n))
        z = rng.integers(0, 16, (groups, n)) if zero is None else np.full((groups, n), zero)
        s = scales_of(rng, (groups, n), k, scales)
        columns = np.arange(k) // group
        tensors = {"qweight": words(q, 4, order), "qzeros": words(z, 4, order), "scales": s}
        return tensors, ((q - z[columns]) * s.double().numpy()[columns]).T

    section = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return rewrite(folder, section, quantise)


def whole(
    folder, group=32, bits=4, asymmetric=False, packed=True, ordered=False, scales=torch.float16, low=None, dense=None
):
    """Whole numbers of compressed-tensors; `group` None is a scale a row, `low` the least number that there is."""
    rng, half = np.random.default_rng(3), 2 ** (bits - 1)

    def quantise(n, k):
        groups = 1 if group is None else -(-k // group)
        columns = np.arange(k) // (group or k)
        if ordered:
            rng.shuffle(columns)
        q = rng.integers(-half if low is None else low, half, (n, k))
        z = rng.integers(-half, half, (n, groups)) if asymmetric else np.zeros((n, groups), int)
        s = scales_of(rng, (n, groups), k, scales)
        kinds = {"weight_scale": s}
        if packed:
            kinds |= {"weight_packed": words(q + half, bits), "weight_shape": torch.tensor([n, k])}
        else:
            kinds |= {"weight": torch.tensor(q).to(torch.int8)}
        if asymmetric:
            kinds["weight_zero_point"] = words(z.T + half, bits).T if packed else torch.tensor(z).to(torch.int8)
        if ordered:
            kinds["weight_g_idx"] = torch.tensor(columns).int()
        return kinds, (q - z[:, columns]) * s.double().numpy()[:, columns]

    changes = {"num_bits": bits, "symmetric": not asymmetric, "group_size": group}
    section = compressed.section(**changes, strategy="group" if group else "channel")
    return rewrite(folder, section | {"format": "pack-quantized" if packed else "int-quantized"}, quantise, dense)


def fp8(folder, block=(32, 48), scale=torch.float32, method="fp8", dense=None, name=None):
    """FP8 with a scale for each block, each row (block "row") or the matrix (None); `method` is who wrote it."""
    rng, name = np.random.default_rng(4), name or ("weight_scale_inv" if method == "fp8" else "weight_scale")

    def quantise(n, k):
        weights = torch.tensor(rng.standard_normal((n, k)) * 40).to(torch.float8_e4m3fn)
        rows, columns = {None: (n, k), "row": (1, k)}.get(block, block)
        s = scales_of(rng, (-(-n // rows), -(-k // columns)), 100 * k, scale)
        spread = np.repeat(np.repeat(s.float().numpy(), rows, axis=0), columns, axis=1)[:n, :k]
        one = s.reshape(()) if block is None and method == "fp8" else s.reshape(-1) if block is None else s
        return {"weight": weights, name: one}, (weights.float().numpy() * spread).astype(np.float64)

    if method == "fp8":
        size = list(block) if isinstance(block, tuple) else None
        section = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": size, "fmt": "e4m3"}
        return rewrite(folder, section, quantise, dense)
    strategy = {None: "tensor", "row": "channel"}.get(block, "block")
    section = compressed.section(num_bits=8, type="float", strategy=strategy, group_size=None)
    scheme = section["config_groups"]["group_0"]
    scheme["input_activations"] = {"num_bits": 8, "type": "float", "dynamic": True}
    scheme["weights"]["block_structure"] = list(block) if strategy == "block" else None
    return rewrite(folder, section | {"format": "float-quantized"}, quantise, dense)


def section_of(folder):
    """The quantization_config, to be changed."""
    return json.loads((folder / "config.json").read_text())["quantization_config"]
