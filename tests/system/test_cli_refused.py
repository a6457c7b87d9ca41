"""What the command line refuses: each time one sentence and exit 2, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.system.commands import refused, run
from tests.system.tiny import write_adapter, write_expert, write_latent


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "ada", tmp_path / "ada"))


def test_missing_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    refused(run("run", copy, "hi"), "model.safetensors")


def test_weights_that_a_link_no_longer_reaches(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to("../blobs/0123")
    refused(run("check", copy), "model.safetensors", "blobs/0123", "download")


def test_truncated_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(run("run", copy, "hi"), "model.safetensors")


def test_header_longer_than_the_file(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])
    refused(run("run", copy, "hi"), "model.safetensors")


def test_what_is_no_file_is_not_waited_for(copy: Path) -> None:
    pipe, router = copy.parent / "c.toml", copy.parent / "router.npz"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        refused(run("check", path), f"[{path}] is a pipe or a device, where a file is expected")
    pipe.unlink()
    text = 'name = "c"\n[router]\nkind = "lexical"\nweights = "router.npz"\nfallback = "ada"\n'
    pipe.write_text(f'{text}[[expert]]\nname = "ada"\ncheckpoint = "ada"\n')
    os.mkfifo(router)
    refused(run("check", pipe), "router.npz")
    (copy / "tokenizer.json").unlink()
    os.mkfifo(copy / "tokenizer.json")
    refused(run("check", copy), "tokenizer.json] is a pipe or a device")


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("model_type", "gpt_neox", "gpt_neox"),
        ("model_type", "gpt_neox", "bloom, falcon, opt on modelled machines only"),
        ("hidden_act", "gelu", "gelu"),
        ("num_hidden_layers", 3, "layers.2"),
        ("intermediate_size", 50, "50"),
        ("vocab_size", 200, "embed_tokens"),
        ("rope_scaling", {"rope_type": "longrope", "factor": 2.0}, "short_factor"),
    ],
)
def test_config_that_cannot_be_run(copy: Path, key: str, value: object, word: str) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    refused(run("run", copy, "hi"), word)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json-schema", '{"type": "strange"}'], ["response_format", "cannot be enforced: Invalid type: strange"]),
        (["--json-schema", '{"a": 1'], ["[--json-schema] is not JSON at line 1, column 8", "but it ends"]),
        (["--json-schema", ' {"a": NaN}'], ["[--json-schema] is not JSON: NaN is no number"]),
        (["--json-schema", "no.json"], ["[no.json] the file does not exist"]),
        (["--json-schema", ""], ["[--json-schema] is empty"]),
        (["--json-schema", "{}", "--json-object"], ["[--json-schema] is given with --json-object"]),
    ],
)
def test_schemas_that_are_none(folder: Path, options: list[str], words: list[str]) -> None:
    refused(run("run", folder, "--expert", "ada", *options, "hi"), *words)


def test_a_schema_file_that_holds_a_list(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text("[]")
    schema = tmp_path / "schema.json"
    refused(run("run", folder, "--expert", "ada", "--json-schema", schema, "hi"), "schema.json] is a JSON list")


def test_wrong_dtype(tmp_path: Path) -> None:
    folder = write_expert(tmp_path / "x", 0)
    path = folder / "model.safetensors"
    path.write_bytes(
        path.read_bytes().replace(b'"model.norm.weight": {"dtype": "BF16"', b'"model.norm.weight": {"dtype": "F64" ')
    )
    refused(run("run", folder, "hi"), "model.norm.weight")


def test_sharded_index_naming_a_missing_file(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(run("run", copy, "hi"), "model-00002-of-00002.safetensors")


COMPOSITION_MISTAKES = [
    ('name = "x"\nexpertt = 1\n', "expertt"),
    ('name = "x"\n', "expert"),
    ('name = "x"\n[[expert]]\nname = "a"\ncheckpoint = "nowhere"\n', "nowhere"),
    ('name = "x"\n[[expert]]\nname = "a"\ncheckpoint = "E"\n[[expert]]\nname = "a"\ncheckpoint = "E"\n', "a"),
    ('name = "x"\n[router]\nkind = "psychic"\nfallback = "a"\n[[expert]]\nname = "a"\ncheckpoint = "E"\n', "psychic"),
    (
        'name = "x"\n[router]\nkind = "rules"\nfallback = "bo"\n[[router.rule]]\nexpert = "a"\nkeywords = ["x"]\n'
        '[[expert]]\nname = "a"\ncheckpoint = "E"\n',
        "bo",
    ),
    ("name = ", "TOML"),
]


@pytest.mark.parametrize(("text", "word"), COMPOSITION_MISTAKES)
def test_composition_mistakes(folder: Path, tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text.replace("E", str(folder / "ada")))
    refused(run("run", path, "hi"), word)


def test_a_budget_below_the_largest_expert(composition: Path) -> None:
    refused(run("run", composition, "--near", "8KiB", "hi"), "--near", "KiB")


def test_no_such_composition(tmp_path: Path) -> None:
    refused(run("run", tmp_path / "nothing", "hi"), "nothing")


def test_no_such_expert(composition: Path) -> None:
    refused(run("run", composition, "--expert", "bbo", "hi"), "bob")


def test_several_experts_without_router(folder: Path) -> None:
    refused(run("run", folder, "hi"), "router")


def test_prompt_longer_than_the_context(folder: Path) -> None:
    refused(run("run", folder, "--expert", "ada", "x" * 500), "128")


@pytest.mark.parametrize("prompt", ["", "   "])
@pytest.mark.parametrize("expert", [(), ("--expert", "ada"), ("--expert", "ada", "--raw")])
def test_empty_prompt(composition: Path, prompt: str, expert: tuple[str, ...]) -> None:
    if prompt and "--raw" in expert:
        assert run("run", composition, prompt, *expert, "--max-tokens", "1").exit_code == 0  # white space is text too
    else:
        refused(run("run", composition, prompt, *expert), "prompt")


def test_a_prompt_that_is_not_unicode(composition: Path) -> None:
    refused(run("run", composition, "--expert", "ada", "a\ud800"), "prompt", "U+D800")


def test_answers_before_a_refused_question_are_kept(composition: Path) -> None:
    result = run("run", composition, "--json", "--max-tokens", "2", "for ada", "x" * 500)
    refused(result, "128")
    assert json.loads(result.stdout)["expert"] == "ada"


@pytest.mark.parametrize("option", ["--near", "--kv"])
def test_a_budget_of_nothing(composition: Path, option: str) -> None:
    refused(run("run", composition, option, "0", "hi"), option)


@pytest.mark.parametrize("ref", ["x" * 300, "~nosuchuser/x", "What is 47 plus 85?"])
def test_a_prompt_where_the_composition_should_be(ref: str) -> None:
    refused(run("run", ref, "hi"))


def test_a_folder_whose_name_is_no_name(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "my models"
    shutil.copytree(folder / "ada", root / "ada")
    assert run("run", root, "--expert", "ada", "--max-tokens", "1", "hi").exit_code == 0


@pytest.mark.parametrize("command", [("check",), ("run",)])
def test_missing_tokenizer(copy: Path, command: tuple[str, ...]) -> None:
    (copy / "tokenizer.json").unlink()
    refused(run(*command, copy, *(["hi"] if command == ("run",) else [])), "tokenizer.json")


def test_a_tokenizer_larger_than_the_vocabulary(copy: Path) -> None:
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["extra"] = 259
    path.write_text(json.dumps(tokenizer))
    refused(run("run", copy, "hi"), "259")


def test_a_prompt_that_holds_an_added_token_without_a_row(copy: Path) -> None:
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 259, "content": "<|extra|>"})
    path.write_text(json.dumps(tokenizer))
    refused(run("run", copy, "hi <|extra|>"), "259")


def test_a_damaged_chat_template(copy: Path) -> None:
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": "{% for m in messages %}"}))
    refused(run("check", copy), "template")


def test_eval_needs_questions_of_the_experts(composition: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "x", "expert": null, "answer": null}\n')
    refused(run("eval", composition, "--questions", path), "q.jsonl")
    path.write_bytes(b'{"prompt": "\xff"}')
    refused(run("eval", composition, "--questions", path), "q.jsonl")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--min-p", "2"),
        ("--top-k", "-3"),
        ("--max-tokens", "0"),
    ],
)
def test_sampling_out_of_range(folder: Path, option: str, value: str) -> None:
    refused(run("run", folder, "--expert", "ada", option, value, "hi"), option.lstrip("-").replace("-", "_"))


def test_bad_sizes_and_devices(folder: Path) -> None:
    assert run("run", folder, "--near", "lots", "hi").exit_code == 2
    refused(run("run", folder, "--device", "toaster", "hi"), "toaster")
    refused(run("run", folder, "--device", "modelled:toaster", "hi"), "toaster")


def test_quantize_refuses_with_one_sentence(folder: Path, tmp_path: Path) -> None:
    refused(run("quantize", folder / "ada", tmp_path / "out", "--bits", "5"), "--bits", "5 bits", "4z, 2 or mxfp4")
    refused(run("quantize", folder / "ada", tmp_path / "out", "--embedding-bits", "3"), "--embedding-bits", "16")
    both = ("--bits", "16", "--embedding-bits", "8")
    refused(run("quantize", folder / "ada", tmp_path / "out", *both), "--embedding-bits", "not requantised")
    refused(run("quantize", tmp_path / "none", tmp_path / "out"), "does not exist", "check the path")
    refused(run("quantize", folder / "ada", folder / "bob"), "bob", "exists already")
    assert run("quantize", folder / "ada", tmp_path / "once").exit_code == 0
    refused(run("quantize", tmp_path / "once", tmp_path / "twice"), "once", "already", "unquantised")


def test_merge_refuses_with_one_sentence(folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", ("self_attn.q_proj",))
    refused(run("merge", folder / "ada", adapter, folder / "bob"), "bob", "exists already")
    refused(run("merge", folder / "ada", folder / "bob", tmp_path / "out"), "bob", "adapter_config.json")
    refused(
        run("merge", adapter, folder / "ada", tmp_path / "out"), "holds a LoRA adapter", "a whole model is expected"
    )
    other = write_adapter(tmp_path / "other", ("self_attn.qkv_proj",))
    refused(run("merge", folder / "ada", other, tmp_path / "out"), "qkv_proj.weight", "does not have", "some/base")


def test_quantize_repacks_or_says_why_not(folder: Path, tmp_path: Path) -> None:
    """A folder that says compressed-tensors, whose weights are not packed: options, and what every command says."""
    theirs = shutil.copytree(folder / "ada", tmp_path / "theirs")
    config = json.loads((theirs / "config.json").read_text())
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    section = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    (theirs / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    refused(run("check", theirs), "compressed-tensors", "coterie quantize FOLDER OUT")
    refused(run("quantize", theirs, tmp_path / "out", "--bits", "5"), "--bits", "5 bits", "4z, 2 or mxfp4")
    refused(run("quantize", theirs, tmp_path / "out", "--embedding-bits", "4"), "--embedding-bits", "4 bits", "--bits")
    refused(run("quantize", theirs, tmp_path / "out", "--bits", "4"), "no matrix", "'compressed-tensors'")
    refused(run("quantize", theirs, tmp_path / "out"), "no matrix", "quantization_config")


def test_keys_and_values_of_8_bits_where_they_cannot_be(folder: Path, tmp_path: Path) -> None:
    refused(run("run", folder, "--expert", "ada", "--kv-type", "int4", "hi"), "--kv-type", "'int4'", "auto, int8")
    refused(run("serve", folder, "--device", "cuda", "--kv-type", "int8"), "--kv-type", "GPU", "leave it out")
    write_latent(tmp_path / "latent", 3)
    refused(run("check", tmp_path, "--kv-type", "int8"), "latent attention", "leave --kv-type out")
