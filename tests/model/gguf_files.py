"""GGUF files of tiny checkpoints, as llama.cpp's converters write them: names, keys, order of rows, norms plus 1.

Written apart from what reads them. Matrices have one type, or that which a function of their name gives.
"""

import json
import math
import re
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from tests.model.gguf_metadata import ENCODERS, PLUS_ONE, add_metadata

from coterie.models.gguf.convert import import_gguf, plan_import
from coterie.models.model import open_model

ARCHITECTURES = {
    "mistral": "llama",
    "gemma3_text": "gemma3",
    "olmo3": "olmo2",
    "gemma4_text": "gemma4",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
    "glm4_moe": "glm4moe",
    "lfm2_moe": "lfm2moe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "roberta": "bert",
    "xlm-roberta": "bert",
    "nomic_bert": "nomic-bert",
    "modernbert": "modern-bert",
}
PERMUTED = ("llama", "smollm3", "granite")


def write(
    folder,
    path,
    kind="F32",
    architecture=None,
    vocabulary=None,
    change=None,
    without=(),
    split=0,
    spoil=None,
    split_kv=True,
    more=None,
):
    """Write a folder's model as a GGUF file.

    `kind` is the type of matrices, or a function from a tensor's name to it; `vocabulary` a function that adds a
    tokenizer to the writer, `change` one that may add metadata. Tensors in `without` are left out, functions by name
    in `spoil` change them; without `split_kv` latent attention is as older files have it. With `split`, so many go into
    each part. `more`: tensors besides.
    """
    config = json.loads((Path(folder) / "config.json").read_text())
    name = architecture or ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, name, split_max_tensors=split)
    add_metadata(writer, name, config)
    if vocabulary:
        vocabulary(writer)
    else:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(config["vocab_size"])
    if change:
        change(writer)
    found = tensors(folder, name, config, split_kv)
    found |= more or {}
    for tensor, values in found.items():
        if tensor in without:
            continue
        if tensor in (spoil or {}):
            spoil[tensor](values)
        wanted = kind(tensor) if callable(kind) else kind
        stored = gguf.GGMLQuantizationType[wanted if values.ndim > 1 else "F32"]
        writer.add_tensor(tensor, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(folder, name, config, split_kv=True):
    """GGUF's tensors by name, float32."""
    numbers = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[name], config["num_hidden_layers"])
    found = {}
    stored = {key: one.to(torch.float32).numpy() for key, one in load_file(Path(folder) / "model.safetensors").items()}
    for theirs, whole in usual(stored, name, config, split_kv).items():
        values = whole
        if name in PERMUTED and (".q_proj." in theirs or ".k_proj." in theirs):
            count = config["num_attention_heads" if ".q_proj." in theirs else "num_key_value_heads"]
            values = values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if name in PLUS_ONE and theirs.endswith("norm.weight"):
            values = values + np.float32(1)
        if theirs == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        scalar = ".weight" if theirs.endswith(("layer_scalar", "sinks")) else ""
        plain, number = unnumbered(theirs)
        ends = (".weight", ".bias")
        named = (names.get_name(plain, ends) or names.get_name(plain.removeprefix("model."), ends)) + scalar
        named = named.replace("exps", f"exps.{number}") if number else named
        found[named] = np.ascontiguousarray(values)
    return stacked(found) | factors(config)


def usual(stored, name, config, split_kv):
    """Tensors as the converter of an architecture takes them, before it names them."""
    if name in ENCODERS:
        bare = {re.sub(r"^(bert|roberta|model)\.", "", key): values for key, values in stored.items()}
        bare = {re.sub(r"^classifier\.(weight|bias)$", r"classifier.out_proj.\1", key): v for key, v in bare.items()}
        stored = {key: values for key, values in bare.items() if not key.startswith("pooler.")}
        if "roberta" in config["model_type"]:
            stored["embeddings.position_embeddings.weight"] = stored["embeddings.position_embeddings.weight"][2:]
    if name == "gpt-oss":  # gate and up in turn, transposed
        for key in [key for key in stored if ".experts." in key]:
            values, (place, _, what) = stored.pop(key), key.rpartition(".")
            is_bias = what.endswith("_bias")
            rows = values if is_bias else values.swapaxes(1, 2)
            parts = {"down": rows} if what.startswith("down") else {"gate": rows[:, ::2], "up": rows[:, 1::2]}
            stored |= {f"{place}.{part}_proj.{'bias' if is_bias else 'weight'}": own for part, own in parts.items()}
    found = {}
    for key, values in stored.items():
        if key.endswith("kv_b_proj.weight") and split_kv:
            heads, plain = config["num_attention_heads"], config["qk_nope_head_dim"]
            both = values.reshape(heads, -1, values.shape[-1])
            found[key.replace("kv_b", "k_b")] = both[:, :plain].swapaxes(1, 2)
            found[key.replace("kv_b", "v_b")] = both[:, plain:]
        else:
            named = re.sub("(e_score_correction)_bias$|(expert_bias)$", r"\1\2.bias", key)
            found[named] = values[:, 0] if key.endswith("conv.conv.weight") else values
    return found


def stacked(found):
    """Matrices of branches, whose names have a number, as one tensor; a matrix of one row as a vector."""
    parts, whole = {}, {}
    for name, values in found.items():
        match = re.fullmatch(r"(.*exps)\.(\d+)(\.weight)", name)
        if match:
            parts.setdefault(match[1] + match[3], {})[int(match[2])] = values
        else:
            whole[name] = values[0] if "inp_shexp" in name else values
    return whole | {name: np.stack([one[i] for i in range(len(one))]) for name, one in parts.items()}


def unnumbered(name):
    """The name of a branch's matrix without the branch's number, and the number."""
    match = re.fullmatch(r"(.*\.experts)\.(\d+)(\..*)", name)
    return (match[1] + match[3], match[2]) if match else (name, "")


def factors(config):
    """Divisors of the frequencies, a number each, where the rope has them."""
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if not rope:
        return {}
    if rope["rope_type"] == "longrope":
        both = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
        return {name: np.array(rope[key], np.float32) for name, key in both.items()}
    if rope["rope_type"] == "proportional":
        size = next(iter(config["per_layer_config"].values()))["head_dim"]
        turning = int(size * rope["partial_rotary_factor"] // 2)
        return {"rope_freqs.weight": np.array([1.0] * turning + [1e30] * (size // 2 - turning), np.float32)}
    if rope["rope_type"] != "llama3":
        return {}
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    found = []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        share = rope["original_max_position_embeddings"] / wave
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = min(max((share - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": np.array(found, np.float32)}


def imported(folder, tokenizer, tmp_path, kind, weights="keep", **how):
    """The file of a folder, what importing it reported, and the model that came out."""
    path = write(folder, tmp_path / f"{kind}.gguf", kind, **how)
    report = import_gguf(plan_import(path, weights), tmp_path / f"{kind}-{weights}", tokenizer)
    return path, report, open_model(report.folder)
