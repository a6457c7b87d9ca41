"""Adapters beside a base, unmerged: what hooks on transformers' modules compute, and what the merged folder does."""

import shutil

import numpy as np
import pytest
import torch
from tests.model import adapters, tiny
from tests.model.runner import BACKENDS, Stepper, prompt_logits
from tests.model.test_merge import logits_of
from tests.model.theirs import as_met, most_lost, prompt_of, relative_error
from tests.model.ways import check_in_turns, check_one_answer

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.fine_tunes.adapted import open_adapted
from coterie.models.fine_tunes.merge import merge_folder
from coterie.models.model import open_model, with_activations
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

OURS = 1e-4  # relative to the largest logit: our kernels beside transformers', in float32
LATER = ("llama-biases", "qwen2", "olmo2", "gemma3", "phi-gqa", "qwen3.5", "gemma4", "gemma4-values", "gemma4-moe")
LATER += ("apertus", "cohere2")
ROWS = ["llama", "qwen3-bias", "phi3-partial", "granite", "gemma2", "stablelm-parallel", "qwen3-moe", "lfm2"]
ROWS += ["granite4-h", "falcon-h1", "nemotron-h-biases", "mamba2"]
ROWS += [pytest.param(row, marks=pytest.mark.long) for row in LATER]
MORE = ("fc1", "fc2", "dense", "lm_head", "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
MORE += ("in_proj", "in_proj_qkvz", "in_proj_ba", "w1", "w2", "w3")


def adapted(row, folder_of, tmp_path, names=(*adapters.ALL, *MORE), dtype="fp32", **changes):
    """A base, factors for it and the folder in which they are saved."""
    base = folder_of(row)
    parts = adapters.parts(tiny.load(base), names, seed=changes.pop("seed", 0))
    return base, parts, adapters.write(tmp_path / "adapter", parts, dtype=tiny.DTYPES[dtype], **changes)


def check_hooked(base, parts, folder, make_backend, scale=lambda _: 2.0):
    """That an adapter gives what hooks on transformers' modules compute; prompt, and logits of both."""
    model = open_adapted(open_model(base), folder)
    prompt = prompt_of(model.config.vocab_size)
    wanted = logits_of(adapters.hook(tiny.load(base), parts, scale), prompt)
    found = prompt_logits(make_backend("cpu", model), prompt)
    assert relative_error(found, wanted) <= OURS
    return prompt, wanted, found


@pytest.mark.parametrize("row", ROWS)
def test_beside_transformers_and_beside_merged_weights(row, folder_of, tmp_path, make_backend):
    """Every linear of every family: joined ones, with a scale or a bias, in branches' layers those of attention."""
    base, parts, folder = adapted(row, folder_of, tmp_path)
    prompt, wanted, found = check_hooked(base, parts, folder, make_backend)
    assert relative_error(logits_of(tiny.load(base), prompt), wanted) > 0.05
    merged = open_model(merge_folder(base, folder, tmp_path / "merged").folder)
    assert relative_error(found, prompt_logits(make_backend("cpu", merged), prompt)) <= OURS


def test_projections_by_key_heads(folder_of, tmp_path, make_backend):
    """Beside all of whose weights are adapted that are no branch's."""
    names = ("in_proj_qkvz", "in_proj_ba", "out_proj", "q_proj", "o_proj")
    check_hooked(*adapted("qwen3-next", folder_of, tmp_path, names), make_backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule_set", ["none", "cache"])
def test_every_way_to_step_gives_one_answer(backend, rule_set, folder_of, tmp_path, make_backend):
    """The reference, fused and unfused, alone and in a batch, a prompt at once and token by token."""
    base, parts, folder = adapted("qwen3", folder_of, tmp_path)
    model = open_adapted(open_model(base), folder)
    prompt = prompt_of(model.config.vocab_size)[:12]
    wanted = logits_of(adapters.hook(tiny.load(base), parts, lambda _: 2.0), prompt)
    check_one_answer(backend, rule_set, model, wanted, prompt, OURS, make_backend)


def test_two_adapters_in_turn_are_each_as_alone(folder_of, tmp_path, make_backend):
    """One base, two sets of factors, tokens of both in turn on one device; equal shapes are one architecture."""
    base = open_model(folder_of("llama"))
    models = []
    for seed in (1, 2):
        _, _, folder = adapted("llama", folder_of, tmp_path / str(seed), seed=seed)
        models.append(open_adapted(base, folder))
    check_in_turns(base, models, make_backend)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_factors_of_other_types_than_the_base(dtype, folder_of, tmp_path, make_backend):
    base, parts, folder = adapted("llama", folder_of, tmp_path, dtype=dtype)
    rounded = {m: adapters.Part(*(t.to(tiny.DTYPES[dtype]).float() for t in (p.a, p.b))) for m, p in parts.items()}
    check_hooked(base, rounded, folder, make_backend)


def test_ranks_scales_and_targets_by_module(folder_of, tmp_path, make_backend):
    """rsLoRA, ranks and alphas by pattern, some targets only; the head of a base where it is the embedding too."""
    base = folder_of("llama-tied")

    def rank(module):
        return 3 if "layers.1" in module else 4

    def scale(module):
        return 2 / 2.0 if module == "lm_head" else 8 / rank(module) ** 0.5

    parts = adapters.parts(tiny.load(base), ("q_proj", "down_proj", "lm_head"), rank)
    changes = {"rank_pattern": {"layers.1.*": 3}, "alpha_pattern": {"lm_head": 2}, "use_rslora": True}
    folder = adapters.write(tmp_path / "adapter", parts, **changes)
    check_hooked(base, parts, folder, make_backend, scale)


@pytest.mark.parametrize("dtype", [DType.Q8, DType.Q4])
@pytest.mark.parametrize("activations", ["int16", "int8"])
def test_a_packed_base(dtype, activations, folder_of, tmp_path, make_backend):
    """Products with packed weights are as ever; factors are not packed. The reference rounds as the device does."""
    base, _, folder = adapted("llama", folder_of, tmp_path)
    quantize_folder(base, tmp_path / "packed", Packing(dtype, DType.Q8))
    model = with_activations(open_adapted(open_model(tmp_path / "packed"), folder), activations)
    prompt = prompt_of(model.config.vocab_size)
    runs = {"reference": as_met(model), "cpu": model}
    found = [prompt_logits(make_backend(backend, run), prompt) for backend, run in runs.items()]
    bound = most_lost(model, 2e-3) if activations == "int16" else 0.05
    assert relative_error(found[1], found[0]) <= bound
    assert relative_error(prompt_logits(make_backend("cpu", open_model(tmp_path / "packed")), prompt), found[0]) > 0.1


def test_a_base_in_shards_and_behind_gates(folder_of, tmp_path, make_backend):
    _, parts, folder = adapted("llama", folder_of, tmp_path)
    base = tiny.save(tiny.make("llama"), tmp_path / "sharded", max_shard_size="40KB")
    assert (base / "model.safetensors.index.json").exists()
    model = open_adapted(open_model(base), folder)
    prompt = prompt_of(model.config.vocab_size)
    backend = make_backend("cpu", model)
    stepper = Stepper(backend)
    wanted = logits_of(adapters.hook(tiny.load(base), parts, lambda _: 2.0), prompt)
    assert relative_error(stepper.feed((stepper.sequence(), prompt)), wanted) <= OURS
    rows = stepper.rows((stepper.sequence(), prompt), sample="last")
    assert backend.tokens_behind_gates(rows)[0, 0] == np.argmax(wanted[-1])
    assert set(model.layout.stages) == {*(f"layers.{i}" for i in range(3)), "head"}
    sizes = sum(info.size_bytes for name, info in model.checkpoint.tensors.items() if "lora" in name)
    assert sizes <= model.layout.size_bytes < sizes + 3 * 4096


def test_end_tokens_and_sampling_are_the_adapters_or_else_the_bases(folder_of, tmp_path):
    base, _, folder = adapted("llama", folder_of, tmp_path)
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    (copy / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert open_adapted(open_model(copy), folder).end_ids == (7, 9)
    (folder / "generation_config.json").write_text('{"eos_token_id": 11}')
    assert open_adapted(open_model(copy), folder).end_ids == (11,)
    (copy / "generation_config.json").write_text('{"do_sample": true, "top_k": 5}')
    assert open_adapted(open_model(copy), folder).advised.sampling.explicit == {"temperature": 1.0, "top_k": 5}
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    assert open_adapted(open_model(copy), folder).advised.sampling.explicit == {"temperature": 0.0}
    (folder / "generation_config.json").write_text('{"eos_token_id": 1100}')
    with pytest.raises(CheckpointError, match="end token 1100 is outside the vocabulary of 257"):
        open_adapted(open_model(copy), folder)


def refused(base, folder, error, match):
    with pytest.raises(error, match=match):
        open_adapted(open_model(base), folder)


def test_what_cannot_stand_beside_a_product_is_refused_with_what_to_do(folder_of, tmp_path):
    base = folder_of("llama")
    model = tiny.load(base)
    merge = f"merge it: coterie merge {base} {tmp_path}/[a-z]+ OUT"
    dora = adapters.write(tmp_path / "dora", adapters.parts(model, ("q_proj",), dora=True), use_dora=True)
    refused(base, dora, UnsupportedError, f"q_proj.weight is use_dora, .* not served unmerged; .*{merge}")
    quantize_folder(base, tmp_path / "packed", Packing(DType.Q4, DType.Q8))
    merge_first = "merge it into the unquantised base: coterie merge BASE .*/dora OUT; quantise that"
    refused(tmp_path / "packed", dora, UnsupportedError, merge_first)
    plain = adapters.parts(model, ("q_proj",))
    head = {"lm_head.weight": model.lm_head.weight + 1}
    saved = adapters.write(tmp_path / "saved", plain, head, modules_to_save=["lm_head"])
    refused(base, saved, UnsupportedError, f"lm_head.weight is a bias or a tensor that was trained whole .*{merge}")
    head = {"lm_head.base_layer.weight": model.lm_head.weight}
    dtype = model.lm_head.weight.dtype
    beside = adapters.write(tmp_path / "beside", adapters.parts(model, ("lm_head",)), head, dtype)
    unchanged = f"lm_head.weight is saved whole, though it is the base's .* save_embedding_layers=False, or {merge}"
    refused(base, beside, UnsupportedError, unchanged)
    head = {"lm_head.base_layer.weight": model.lm_head.weight + 1}
    changed = adapters.write(tmp_path / "changed", adapters.parts(model, ("lm_head",)), head, dtype)
    refused(base, changed, UnsupportedError, f"lm_head.weight is adapted, and saved whole besides, .*{merge}")
    saved = adapters.write(
        tmp_path / "embedding", plain, {"model.embed_tokens.weight": model.model.embed_tokens.weight}, dtype
    )
    refused(base, saved, UnsupportedError, "embed_tokens.weight is saved whole, though it is the base's to the byte")
    biased = adapters.write(tmp_path / "bias", plain, {"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)})
    refused(base, biased, UnsupportedError, f"q_proj.bias is a bias .*{merge}")
    embedding = adapters.write(tmp_path / "embed", adapters.parts(model, ("embed_tokens",)))
    refused(base, embedding, UnsupportedError, f"an adapted embedding, not served unmerged; .*{merge}")
    tied, linear = folder_of("llama-tied"), adapters.Part(torch.zeros(4, 48), torch.zeros(257, 4))
    refused(
        tied, adapters.write(tmp_path / "as-head", {"model.embed_tokens": linear}), UnsupportedError, "an adapted emb"
    )
    other = adapters.write(tmp_path / "ia3", plain, peft_type="IA3")
    refused(base, other, UnsupportedError, "peft_type is 'IA3'")
    narrow = adapters.write(
        tmp_path / "narrow", {"model.layers.0.self_attn.k_proj": plain["model.layers.0.self_attn.q_proj"]}
    )
    refused(
        base, narrow, CheckpointError, r"are for a matrix \[48, 48\], but it is \[24, 48\]; use the base .*some/base"
    )
    strange = adapters.write(
        tmp_path / "strange", {"model.layers.9.self_attn.q_proj": plain["model.layers.0.self_attn.q_proj"]}
    )
    refused(base, strange, CheckpointError, r"model\.layers\.9\..*, of which the base .* has no product")
    tied = adapters.write(
        tmp_path / "tied", adapters.parts(tiny.load(folder_of("llama-tied")), ("lm_head",)), ensure_weight_tying=True
    )
    refused(folder_of("llama-tied"), tied, UnsupportedError, "ensure_weight_tying is true")


def test_matrices_of_branches_are_refused(folder_of, tmp_path):
    base = folder_of("mixtral")
    _, parts, folder = adapted("mixtral", folder_of, tmp_path)
    gate = "model.layers.0.block_sparse_moe.experts.1.w1"
    parts = {gate: adapters.Part(torch.zeros(4, 48), torch.zeros(68, 4))}
    folder = adapters.write(tmp_path / "branch", parts)
    refused(base, folder, UnsupportedError, "a matrix of a branch .* not served unmerged; merge it: coterie merge")
