"""Fine-tunes made on the spot, and what a base with a packed difference beside it computes: by sums of their weights.

tuned = differences.tune(base, folder)                         # every tensor of the base changed a little
wanted = differences.summed(base, tuned, delta, Packing(...))  # transformers' model with W_base + what is unpacked
"""

import torch
from safetensors.torch import load_file
from tests.model import tiny

from coterie.core.packed import unpack
from coterie.models.fine_tunes.delta import delta_name
from coterie.models.joined import joined_names, own_name
from coterie.models.model import open_model

CHANGE = 0.3  # of the weights, so that nothing about it can be left out unseen


def tune(base, folder, seed=1, only=""):
    """A copy of a base in which every tensor, or every one with such a name, is changed."""
    model = tiny.load(base)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if only in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter.data + CHANGE * parameter.data.pow(2).mean().sqrt() * noise
    model.generation_config.eos_token_id = None
    return tiny.save(model, folder)


def summed(base, tuned, delta, packing):
    """The fine-tune in which each matrix that the delta packs is the base's plus what that is worth."""
    ours, stored = open_model(base), load_file(delta / "delta.safetensors")
    parts = dict(joined_names(ours.config.names, ours.config.num_layers))
    model, was = tiny.load(tuned), dict(tiny.load(base).named_parameters())
    for name, parameter in model.named_parameters():
        own = own_name(name, ours.config.names)
        first = 0
        for part in parts.get(own, (own,)):
            worth, rows = _worth(stored, part, ours, packing), slice(first, None)
            if part in ours.graph.values:
                first += ours.graph.values[part].shape[0] if parameter.dim() else 0
                rows = slice(rows.start, first)
            if worth is not None:
                parameter.data[rows] = was[name].data[rows] + worth
    return model


def _worth(stored, weight, ours, packing):
    """The difference of a weight as float32, or None where the file has none."""
    rows = stored.get(delta_name(weight))
    if rows is None or weight not in ours.graph.values:
        return None
    shape = ours.graph.values[weight].shape
    return torch.from_numpy(unpack(rows.numpy(), packing.dtype_of(weight, shape), shape[1]))
