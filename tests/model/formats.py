"""The formats in which others quantise that have a writer here, by name, and what tests of them share.

Knows nothing about how they are read.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model import others

from coterie.models.repack import repack_folder

SIZES = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 1}


UP = "model.layers.0.mlp.up_proj"


def asymmetric(folder):
    return others.whole(folder, 16, asymmetric=True, scales=torch.bfloat16)


FORMATS = {
    "gptq": lambda folder: others.gptq(folder, zero=8),
    "gptq, a row a group": lambda folder: others.gptq(folder, -1, g_idx=False),
    "gptq of 2 bits, zeros": lambda folder: others.gptq(folder, bits=2),
    "gptq of 8 bits, version 2": lambda folder: others.gptq(folder, 64, bits=8, version=2, scales=torch.bfloat16),
    "gptq in order of activations": lambda folder: others.gptq(folder, 16, ordered=True),
    "awq": others.awq,
    "awq, groups of 48": lambda folder: others.awq(folder, 48),
    "whole": others.whole,
    "whole, asymmetric": asymmetric,
    "whole, asymmetric rows": lambda folder: others.whole(folder, None, asymmetric=True),
    "whole of 8 bits by row": lambda folder: others.whole(folder, None, bits=8),
    "whole in order of activations": lambda folder: others.whole(folder, ordered=True, asymmetric=True),
    "bytes": lambda folder: others.whole(folder, None, bits=8, packed=False),
    "bytes, asymmetric": lambda folder: others.whole(folder, 64, bits=8, packed=False, asymmetric=True),
    "fp8": others.fp8,
    "fp8, bfloat16 scales": lambda folder: others.fp8(folder, (128, 128), torch.bfloat16),
    "fp8, one scale": lambda folder: others.fp8(folder, None),
    "fp8 of AutoFP8": lambda folder: others.fp8(folder, None, name="weight_scale"),
    "float-quantized by row": lambda folder: others.fp8(folder, "row", torch.bfloat16, "compressed-tensors"),
    "float-quantized, one scale": lambda folder: others.fp8(folder, None, method="compressed-tensors"),
    "float-quantized blocks": lambda folder: others.fp8(folder, (64, 32), method="compressed-tensors"),
}


def add(folder, **tensors):
    """Store more tensors, or others in their places."""
    whole = {**load_file(folder / "model.safetensors"), **tensors}
    save_file({name: t for name, t in whole.items() if t is not None}, folder / "model.safetensors", {"format": "pt"})


def refused(error, words, folder, out, layers=None):
    with pytest.raises(error) as caught:
        repack_folder(folder, out, layers)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not list(out.parent.glob("out*"))
