"""LoRA adapters made on the spot in PEFT's file format, and what a model with one computes: by hooks, never merged.

parts = adapters.parts(model, ["q_proj", "v_proj"], rank=4)       # module -> its factors
adapters.write(folder, parts, r=4, lora_alpha=8)                  # as PEFT saves it
adapters.hook(model, parts, lambda module: 2.0)                   # output + scale * B (A x)
"""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import save_file

PREFIX = "base_model.model."
# What PEFT 0.21 writes for a plain adapter.
CONFIG = {
    **{"alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None},
    **{"base_model_name_or_path": "some/base", "bias": "none", "corda_config": None, "ensure_weight_tying": False},
    **{"eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True},
    **{"init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None},
    **{"layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.1},
    **{"megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA"},
    **{"peft_version": "0.21.0", "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": None},
    **{"target_modules": None, "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None},
    **{"use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False},
}
ALL = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Part:
    """The factors of a module: a [rank, in], b [out, rank]; `magnitude` [out] with DoRA."""

    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None = None


def parts(model, names=ALL, rank=4, dora=False, seed=0):
    """Random factors for every module that ends in one of these names; `rank` is a number or a function of a module.

    What they add is about as large as the weights, so that nothing about it can be left out unseen.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for module, layer in model.named_modules():
        if any(f".{module}".endswith(f".{name}") for name in names):
            r = rank(module) if callable(rank) else rank
            n, k = layer.weight.shape[::-1] if isinstance(layer, torch.nn.Embedding) else layer.weight.shape
            a = torch.randn((r, k), generator=generator) / (k if isinstance(layer, torch.nn.Linear) else 4) ** 0.5
            b = torch.randn((n, r), generator=generator) / (2 * r**0.5)
            found[module] = Part(a, b, 0.5 + torch.rand(n, generator=generator) if dora else None)
    return found


def write(folder, parts, wholes=None, dtype=torch.float32, **changes):
    """Save an adapter; `wholes` are tensors by their name in the base, `changes` of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PREFIX + name: tensor for name, tensor in (wholes or {}).items()}
    for module, part in parts.items():
        form = "lora_embedding_{}" if module.endswith("embed_tokens") else "lora_{}.weight"
        tensors[f"{PREFIX}{module}.{form.format('A')}"] = part.a
        tensors[f"{PREFIX}{module}.{form.format('B')}"] = part.b
        if part.magnitude is not None:
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = part.magnitude
    tensors = {name: tensor.detach().to(dtype).clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {**CONFIG, "target_modules": sorted({m.rsplit(".", 1)[-1] for m in parts}), **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def hook(model, parts, scale_of):
    """The model with the adapter beside its weights: every adapted module's output is changed when it is called."""
    for module, part in parts.items():
        layer = model.get_submodule(module)
        beside = _beside_embedding if isinstance(layer, torch.nn.Embedding) else _beside_linear
        layer.register_forward_hook(beside(part, scale_of(module)))
    return model


def _beside_linear(part, scale):
    def after(layer, inputs, output):
        a, b = part.a.to(output.dtype), part.b.to(output.dtype)
        low = scale * (inputs[0] @ a.T) @ b.T
        if part.magnitude is None:
            return output + low
        # DoRA, equation 5: the direction W + BA keeps, divided by its length, times the magnitude; the bias stays.
        lengths = torch.stack([row.norm() for row in layer.weight + scale * b @ a])
        bias = 0 if layer.bias is None else layer.bias
        return (output - bias + low) * (part.magnitude / lengths) + bias

    return after


def _beside_embedding(part, scale):
    return lambda _, inputs, output: output + scale * part.a.T.to(output.dtype)[inputs[0]] @ part.b.T.to(output.dtype)
