"""Folders as compressed-tensors packs them (pack-quantized, symmetric int4), made on the spot, and what they hold.

Knows nothing about how they are read.
"""

import json
import re

import numpy as np
import torch
from safetensors.torch import load_file, save_file

WEIGHTS = {
    **{"actorder": None, "block_structure": None, "dynamic": False, "group_size": 32, "num_bits": 4},
    **{"observer": "minmax", "observer_kwargs": {}, "strategy": "group", "symmetric": True, "type": "int"},
}


def section(**changes):
    """The quantization_config; `changes` are of the weights' scheme."""
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"]}
    group["weights"] = {**WEIGHTS, **changes}
    names = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    return names | {"config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None}


def words_of(q):
    """Whole numbers [N, K] from -8 to 7 in 32-bit words [N, K / 8], the first in the lowest bits."""
    padded = np.zeros((len(q), -(-q.shape[1] // 8) * 8), np.uint32)
    padded[:, : q.shape[1]] = q.astype(np.int64) + 8
    shifted = padded.reshape(len(q), -1, 8) << (4 * np.arange(8, dtype=np.uint32))
    return torch.tensor(np.bitwise_or.reduce(shifted, axis=-1).view(np.int32))


def compress(folder, group, scales=torch.bfloat16, seed=0):
    """Pack every matrix of a folder's layers in place; returns what each is worth, by name, in float64.

    Those that choose branches stay as they are. A group of None is one scale a row. The whole numbers are random, all
    sixteen of them.
    """
    rng, worth, stored = np.random.default_rng(seed), {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.ndim != 2 or re.search(r"embed|lm_head|mlp\.gate\.|moe_statics", name):
            stored[name] = tensor
            continue
        n, k = tensor.shape
        q = rng.integers(-8, 8, (n, k))
        scale = torch.tensor(rng.uniform(0.5, 1.5, (n, -(-k // (group or k)))) / (4 * k**0.5)).to(scales)
        worth[name] = q * np.repeat(scale.double().numpy(), group or k, axis=1)[:, :k]
        stem = name.removesuffix(".weight")
        stored[f"{stem}.weight_packed"] = words_of(q)
        stored[f"{stem}.weight_scale"] = scale
        stored[f"{stem}.weight_shape"] = torch.tensor([n, k])
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    configure(folder, quantization_config=section(**({"group_size": group} if group else {"strategy": "channel"})))
    return worth


def configure(folder, **changes):
    """Change keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
