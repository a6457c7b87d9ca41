"""Writes a tiny gpt-oss as its released checkpoints are: branches in MXFP4, all else in bfloat16.

Knows nothing about how such folders are read.
"""

import json

import numpy as np
from safetensors.torch import load_file, save_file
from torch import from_numpy

CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]}
FLOATS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
GROUP = 32


def quantise(folder, seed=0):
    """Put random blocks and scales in place of the branches' matrices; what these are worth, as transformers has them.

    Each is [E, columns, rows], as in a checkpoint that nobody quantised.
    """
    rng, file = np.random.default_rng(seed), folder / "model.safetensors"
    tensors, worth = load_file(file), {}
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        E, columns, rows = tensors.pop(name).shape
        groups = columns // GROUP
        codes = rng.integers(0, 16, (E, rows, groups, GROUP)).astype(np.uint8)
        scales = rng.integers(122, 126, (E, rows, groups)).astype(np.uint8)
        blocks = codes[..., ::2] | codes[..., 1::2] << 4
        tensors |= {f"{name}_blocks": from_numpy(blocks), f"{name}_scales": from_numpy(scales)}
        signed = np.concatenate([FLOATS, -FLOATS])[codes]
        values = signed * np.float32(2) ** (scales.astype(np.float32) - 127)[..., None]
        worth[name] = values.reshape(E, rows, columns).transpose(0, 2, 1)
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": CONFIG}))
    return worth
