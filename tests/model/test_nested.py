"""Checkpoints of models that read images too: the text model inside is run, under either of two naming ways."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.model import others, tiny
from tests.model.configs import changed
from tests.model.runner import BACKENDS
from tests.model.theirs import ask
from tests.model.ways import check_theirs

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.config import ModelConfig
from coterie.models.model import open_model, synthetic_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder
from coterie.models.repack import repack_folder

TEXT = {key: value for key, value in tiny.BASE.items() if key != "rope_parameters"}
SIGLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SIGLIP |= {"image_size": 28, "patch_size": 14}
GROWING = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "rope_theta": 1000.0}
GROWING |= {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4}
ROWS = {
    "gemma3": (
        "Gemma3",
        {**TEXT, "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 11},
        {"mm_tokens_per_image": 4, "image_token_index": 250, "boi_token_index": 251, "eoi_token_index": 252},
    ),
    "mistral3": (
        "Mistral3",
        {**TEXT, "model_type": "ministral3", "head_dim": 20, "rope_parameters": GROWING},
        {"image_token_index": 250, "tie_word_embeddings": False},
    ),
}


def save_whole(prefix, text, folder, more=None, **sections):
    """A random model that has a text model and others beside it, as its save_pretrained writes it.

    `text` and `sections` are what configs say, `more` are tensors that are stored too.
    """
    config = getattr(transformers, f"{prefix}Config")(text_config=text | {"eos_token_id": None}, **sections)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
    tiny.randomise(model, 0)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    if more:
        tensors = load_file(folder / "model.safetensors") | more
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def make(name, folder):
    """A random whole model, saved as its own save_pretrained does."""
    prefix, text, changes = ROWS[name]
    vision = SIGLIP if name == "gemma3" else {**SIGLIP, "model_type": "pixtral", "head_dim": 8}
    return save_whole(prefix, text, folder, vision_config=vision, **changes)


@pytest.fixture(scope="module", params=ROWS)
def folder(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp(request.param) / request.param)


def renamed(folder, target, rename):
    """A copy whose tensors have other names; None leaves one out."""
    shutil.copytree(folder, target)
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({name: t for name, t in tensors.items() if name}, target / "model.safetensors", {"format": "pt"})
    return target


def newer(name):
    """language_model.model.x -> model.language_model.x, and so on."""
    name = name.removeprefix("model.")
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return name if name.startswith("lm_head") else "model." + name


def older(name):
    name = name.removeprefix("model.")
    if name.startswith("language_model.") and not name.startswith(("language_model.model.", "language_model.lm_head")):
        return "language_model.model." + name.removeprefix("language_model.")
    return "language_model." + name if name.startswith("lm_head") else name


def test_the_text_model_is_that_of_transformers(folder, make_backend):
    model, theirs = open_model(folder), ask(folder, "fp32")
    assert model.part_of == folder.name
    for backend in BACKENDS:
        check_theirs(make_backend(backend, model), theirs, 1e-5)


def test_both_ways_to_name_tensors_are_one_model(folder, tmp_path):
    names = [
        set(load_file(renamed(folder, tmp_path / way.__name__, way) / "model.safetensors")) for way in (newer, older)
    ]
    assert not names[0] & names[1]
    models = [open_model(tmp_path / way.__name__) for way in (newer, older)]
    assert models[0].key == models[1].key == open_model(folder).key
    assert models[0].checkpoint.tensors.keys() == models[1].checkpoint.tensors.keys()
    assert not [name for name in models[0].checkpoint.tensors if "vision" in name or "projector" in name]


def test_images_are_not_read(folder):
    """No range covers a block of the vision tower alone, and none of its bytes count."""
    model, whole = open_model(folder), load_file(folder / "model.safetensors")
    text = sum(info.size_bytes for info in model.checkpoint.tensors.values())
    tower = sum(t.numel() * 4 for name, t in whole.items() if "vision_tower" in name or "projector" in name)
    assert tower > 0
    assert sum(placed.source.size_bytes for placed in model.layout.ranges) < text + 8 * 4096
    assert text == sum(t.numel() * 4 for t in whole.values()) - tower


def test_what_is_written_from_it_is_a_text_model(folder, tmp_path):
    quantize_folder(folder, tmp_path / "packed", Packing(DType.Q8, None))
    model = open_model(tmp_path / "packed")
    assert (model.part_of, model.config.family) == ("", open_model(folder).config.family)
    assert json.loads((tmp_path / "packed" / "config.json").read_text())["model_type"] == model.config.family


def test_the_file_says_whether_embedding_and_head_are_one(folder, tmp_path):
    tied, head = open_model(folder).config.tied_embeddings, "lm_head.weight"
    assert tied == (folder.name == "gemma3")
    if tied:
        own = renamed(folder, tmp_path / "own", lambda name: name)
        tensors = load_file(own / "model.safetensors")
        embed = next(t for name, t in tensors.items() if name.endswith("embed_tokens.weight"))
        for scale, is_tied in ((1, True), (2, False)):
            save_file({**tensors, head: embed * scale}, own / "model.safetensors", {"format": "pt"})
            assert open_model(own).config.tied_embeddings is is_tied
    else:
        without = renamed(folder, tmp_path / "without", lambda name: None if name.endswith(head) else name)
        with pytest.raises(CheckpointError, match=r"tensor lm_head.weight \[257, 48\] is missing"):
            open_model(without)


def test_what_is_refused(folder, tmp_path):
    for number, (changes, sentence) in enumerate(
        [
            ({"text_config": None}, "text_config is missing; it must be the config of the text model"),
            ({"audio_config": {"a": 1}}, "audio_config = {'a': 1} means audio input"),
            (
                {"architectures": ["Other"]},
                r"with architectures \['Other'\] is not supported; Coterie runs the text model of",
            ),
            ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config of 'fp8' means quantised weights"),
        ]
    ):
        with pytest.raises((CheckpointError, UnsupportedError), match=sentence):
            open_model(changed(folder, tmp_path / str(number), **changes))
    extra = renamed(folder, tmp_path / "extra", lambda name: name)
    tensors = load_file(extra / "model.safetensors") | {"audio_tower.weight": torch.zeros(1)}
    save_file(tensors, extra / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"does not use: audio_tower.weight"):
        open_model(extra)


def test_a_config_as_released_leaves_much_out():
    """Of gemma-3-4b-it; vocabulary and heads are those that its config class has."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    raw = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    raw |= {"mm_tokens_per_image": 256, "eos_token_id": [1, 106], "torch_dtype": "bfloat16", "vision_config": SIGLIP}
    found = ModelConfig.from_hf(raw, "gemma-3-4b-it")
    whole = json.loads(transformers.Gemma3Config(**raw).to_json_string(use_diff=False))
    assert found == ModelConfig.from_hf(whole, "gemma-3-4b-it")
    assert (found.vocab_size, found.num_heads, found.num_kv_heads, found.head_dim) == (262_208, 8, 4, 256)
    assert (found.tied_embeddings, found.windows[:6], found.rope.kind) == (True, (1024,) * 5 + (0,), "linear")
    model = synthetic_model(raw, "gemma")
    assert (model.part_of, model.config) == ("gemma3", found)


def test_what_others_quantised(folder_of, tmp_path):
    """FP8 with one scale for each matrix, as Ministral 3 comes: the same expert as from the text model alone."""
    alone = shutil.copytree(folder_of("ministral3", "yarn", "bf16"), tmp_path / "alone")
    others.fp8(alone, None)
    whole = renamed(alone, tmp_path / "whole", lambda name: f"language_model.{name}")
    text = json.loads((alone / "config.json").read_text())
    raw = {"model_type": "mistral3", "text_config": text, "vision_config": SIGLIP}
    raw["quantization_config"] = text.pop("quantization_config")
    (whole / "config.json").write_text(json.dumps(raw))
    for source in (alone, whole):
        repack_folder(source, source.with_suffix(".packed"), layers=DType.Q8)
    packed = [(source.with_suffix(".packed") / "model.safetensors").read_bytes() for source in (alone, whole)]
    assert packed[0] == packed[1]
