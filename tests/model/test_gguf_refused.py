"""GGUF files that are not imported: one sentence each, with names and numbers, and nothing is left behind."""

import shutil

import numpy as np
import pytest
import tokenizers

from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.models.fields import Fields
from coterie.models.gguf.config import config_of, generation_of
from coterie.models.gguf.convert import import_gguf, plan_import
from coterie.models.gguf.families import ARCHITECTURES
from coterie.models.gguf.file import GgufFile, open_gguf
from coterie.models.gguf.rope import rope_keys
from coterie.models.gguf.source import Source

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[gguf]'")
from tests.model import gguf_files  # noqa: E402


@pytest.fixture(scope="module")
def good(folder_of, tmp_path_factory):
    """A good file, which a test may copy and damage."""
    return gguf_files.write(folder_of("llama", dtype="bf16"), tmp_path_factory.mktemp("good") / "good.gguf", "BF16")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    return path


def refused(error, words, path, tmp_path, tokenizer, **how):
    """The sentence has all the words, and neither a folder nor half of one is there."""
    with pytest.raises(error) as caught:
        import_gguf(plan_import(path, **how), tmp_path / "out", tokenizer)
    for word in words:
        assert str(word) in str(caught.value), str(caught.value)
    assert not list(tmp_path.glob("out*"))


def written(folder, tmp_path, **how):
    return gguf_files.write(folder, tmp_path / "bad.gguf", "BF16", **how)


def test_what_is_no_whole_file(good, tmp_path, tokenizer):
    """Cut anywhere, at every kind of place, or something else altogether."""
    data, path = good.read_bytes(), tmp_path / "bad.gguf"
    for size in (0, 3, 4, 7, 11, 20, 24, 30, 100, 500, 1500, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refused(CheckpointError, [path, f"{size} bytes", "whole GGUF file", "again"], path, tmp_path, tokenizer)
    path.write_bytes(b"PK" + data[2:])
    refused(CheckpointError, [path, "begin with b'PK", "GGUF magic"], path, tmp_path, tokenizer)
    path.write_bytes(data[:4] + (99).to_bytes(4, "little") + data[8:])
    refused(CheckpointError, [path, "version 99"], path, tmp_path, tokenizer)
    refused(UsageError, [tmp_path, "folder", "bad.gguf"], tmp_path, tmp_path, tokenizer)
    refused(UsageError, ["none.gguf", "does not exist"], tmp_path / "none.gguf", tmp_path, tokenizer)


def test_damaged_bytes_of_the_header_are_never_a_traceback(good, tmp_path):
    """It is refused in one sentence, or read as another number that is possible."""
    random, path, refusals = np.random.default_rng(0), tmp_path / "bad.gguf", 0
    for _ in range(40):
        data = bytearray(good.read_bytes())
        for at in random.integers(4, 2600, 3):
            data[at] = random.integers(256)
        path.write_bytes(data)
        try:
            plan_import(path)
        except UsageError:
            refusals += 1
    assert refusals > 20


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "qwen3moe"}, ["qwen3moe", "not imported", "llama, qwen2"]),
        ({"general.architecture": "mamba"}, ["mamba", "not imported"]),
        (
            {"general.architecture": "dbrx", "dbrx.expert_count": 8},
            ["8 branches", "mixture", "qwen3moe"],
        ),
        (
            {"general.architecture": "gemma4", "gemma4.expert_count": 8},
            ["8 branches", "mixture", "qwen3moe"],
        ),
        ({"general.architecture": "olmoe"}, ["'olmoe' is not imported"]),
        ({"general.architecture": "clip"}, ["vision projector", "language model beside it"]),
        ({"general.architecture": "llama", "general.type": "adapter"}, ["adapter", "no language model"]),
        ({}, ["'None'", "not imported"]),
    ],
)
def test_other_architectures_and_kinds_of_file(metadata, words, tmp_path):
    with pytest.raises(UnsupportedError) as caught:
        config_of(GgufFile(tmp_path / "x.gguf", metadata, {}, 0))
    assert all(word in str(caught.value) for word in (*words, "x.gguf"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.add_logit_scale(0.5), ["logit_scale = 0.5", "not understood", "llama"]),
        (lambda w: w.add_rope_freq_base_swa(64.0), ["rope.freq_base_swa = 64.0", "not understood"]),
        (lambda w: w.add_float32("llama.new_thing", 1.5), ["new_thing = 1.5", "could change the answers"]),
        (lambda w: w.add_causal_attention(False), ["attention.causal = False", "not understood"]),
        (
            lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.NONE) or w.add_rope_scaling_attn_factors(1.5),
            ["attn_factor"],
        ),
    ],
)
def test_keys_that_mean_what_is_not_run(change, words, folder_of, tmp_path, tokenizer):
    path = written(folder_of("llama", dtype="bf16"), tmp_path, change=change)
    refused(UnsupportedError, words, path, tmp_path, tokenizer)


def test_tensors_that_are_missing_or_left_over(folder_of, tmp_path, tokenizer):
    path = written(folder_of("llama", dtype="bf16"), tmp_path, without=("blk.1.ffn_up.weight",))
    words = ["blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight", "missing"]
    refused(CheckpointError, words, path, tmp_path, tokenizer)
    path = written(folder_of("qwen2", dtype="bf16"), tmp_path, without=("blk.0.attn_q.bias",))
    refused(CheckpointError, ["blk.0.attn_q.bias", "missing"], path, tmp_path, tokenizer)
    path = written(folder_of("llama-biases", dtype="bf16"), tmp_path, without=("blk.0.attn_q.bias",))
    refused(UnsupportedError, ["does not use", "blk.0.attn_k.bias", "more"], path, tmp_path, tokenizer)


def test_options_and_places(good, folder_of, tmp_path, tokenizer):
    refused(UsageError, ["--weights", "'int5'", "keep"], good, tmp_path, tokenizer, weights="int5")
    refused(CheckpointError, [good.parent, "no tokenizer.json"], good, tmp_path, good.parent)
    refused(UsageError, ["nowhere", "does not exist", "--tokenizer"], good, tmp_path, tmp_path / "nowhere")
    refused(CheckpointError, [f"[{good}]", "not a tokenizer"], good, tmp_path, good)
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(UsageError, match="out] exists already"):
        import_gguf(plan_import(good), tmp_path / "out", tokenizer)
    (tmp_path / "out").unlink()
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError):
        import_gguf(plan_import(good), tmp_path / "mine" / "a" / "b", good.parent)
    assert not list((tmp_path / "mine").iterdir())
    (tmp_path / "here").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        import_gguf(plan_import(good), tmp_path / "here", tokenizer)
    large = tmp_path / "large.json"
    words = {f"w{i}": i for i in range(300)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(str(large))
    refused(CheckpointError, ["the tokenizer", "299", "257"], good, tmp_path, large)


def test_weights_that_are_no_numbers(folder_of, tmp_path, tokenizer):
    """In the type of the file they stay what they are; in another they are refused."""

    def spoil(values):
        values[1, 2] = np.inf

    path = written(folder_of("llama", dtype="bf16"), tmp_path, spoil={"blk.2.ffn_gate.weight": spoil})
    refused(CheckpointError, ["blk.2.ffn_gate.weight", "infinite"], path, tmp_path, tokenizer, weights="int8")


def test_parts_that_are_not_all_there(folder_of, tmp_path, tokenizer):
    gguf_files.write(folder_of("llama", dtype="bf16"), tmp_path / "parts.gguf", "BF16", split=10)
    first, second, *_ = parts = sorted(tmp_path.glob("parts-0*"))
    refused(UsageError, [second.name, f"part 2 of {len(parts)}", first.name], second, tmp_path, tokenizer)
    shutil.copyfile(first, tmp_path / "other.gguf")
    refused(CheckpointError, ["other.gguf", f"one of {len(parts)} parts"], tmp_path / "other.gguf", tmp_path, tokenizer)
    second.unlink()
    refused(CheckpointError, [first, second.name, "is not beside it"], first, tmp_path, tokenizer)
    first.unlink()
    last = parts[-1]
    refused(CheckpointError, [last, first.name, second.name, "are not beside it"], last, tmp_path, tokenizer)


def test_factors_of_rope_are_given_back():
    """Llama 3's own numbers by name, others by what gives the same factors, and any factors one by one."""
    pairs = np.arange(64)

    def config(low, high, factor, length, theta=500_000.0):
        share = length / (2 * np.pi) * theta ** (-pairs / 64)
        s = np.clip((share - low) / (high - low), 0, 1)
        factors = (1 / ((1 - s) / factor + s)).astype(np.float32)
        keys = Fields({"rope.freq_base": theta}, "x")
        return rope_keys(keys, 128, 131_072, {"rope_freqs.weight": factors})["rope_scaling"], factors

    usual = {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    for factor in (8.0, 32.0):
        found, _ = config(1.0, 4.0, factor, 8192)
        assert found == usual | {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found, _ = config(1.0, 4.0, 16.0, 4096)
    assert found == usual | {"factor": 16.0, "low_freq_factor": 2.0, "high_freq_factor": 8.0}
    odd = np.linspace(1.0, 3.0, 64).astype(np.float32)
    found = rope_keys(Fields({}, "x"), 128, 4096, {"rope_freqs.weight": odd})["rope_scaling"]
    assert found["rope_type"] == "longrope"
    np.testing.assert_array_equal(np.array(found["short_factor"], np.float32), odd)
    assert rope_keys(Fields({}, "x"), 128, 4096, {"rope_freqs.weight": np.ones(64, np.float32)}) == {"rope_theta": 1e4}
    with pytest.raises(CheckpointError, match="64 factors for 32 pairs"):
        rope_keys(Fields({}, "x"), 64, 4096, {"rope_freqs.weight": odd})
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(CheckpointError, match="no positive number"):
            rope_keys(Fields({}, "x"), 128, 4096, {"rope_freqs.weight": np.append(odd[1:], np.float32(wrong))})
    with pytest.raises(UnsupportedError, match="attn_factor"):
        rope_keys(Fields({"rope.scaling.attn_factor": 1.5}, "x"), 128, 4096, {"rope_freqs.weight": odd})
    with pytest.raises(CheckpointError, match=r"rope_factors_long\.weight is missing"):
        rope_keys(Fields({"rope.scaling.type": "longrope"}, "x"), 128, 4096, {})


@pytest.mark.parametrize(
    ("own", "factor"),
    [
        ({}, None),
        ({"attn_factor": 1.0}, None),
        ({"attn_factor": 1.2079442}, None),  # 0.1 ln(8) + 1, as OLMo 3's first converter wrote it
        ({"attn_factor": 0.5}, 0.5 * 1.2079442),
        ({"yarn_attn_factor": 0.7, "attn_factor": 0.5}, 0.7),
    ],
)
def test_the_scale_of_yarn(own, factor):
    own = {"type": "yarn", "factor": 8.0, "original_context_length": 512} | own
    found = rope_keys(Fields({f"rope.scaling.{key}": value for key, value in own.items()}, "x"), 128, 4096, {})
    assert found["rope_scaling"].get("attention_factor") == (None if factor is None else pytest.approx(factor))


def test_yarn_and_values_that_are_not_run(good):
    scaling = {"type": "yarn", "factor": 8.0, "original_context_length": 512, "yarn_ext_factor": 0.5}
    with pytest.raises(UnsupportedError, match=r"yarn_ext_factor = 0\.5"):
        rope_keys(Fields({f"rope.scaling.{key}": value for key, value in scaling.items()}, "x"), 128, 4096, {})
    file = open_gguf(good)
    with pytest.raises(UnsupportedError, match="values of 8 channels beside keys of 12"):
        config_of(GgufFile(file.path, {**file.metadata, "llama.attention.value_length": 8}, file.tensors, 0))


@pytest.mark.parametrize(
    ("name", "num_layers", "scalar"),
    [("gemma2", 42, 256), ("gemma2", 46, 144), ("gemma3", 34, 256), ("gemma3", 62, 144)],
)
def test_what_gemma_fixes_by_architecture(name, num_layers, scalar):
    """The scale of queries, which is another in the models of 27 billion weights alone, and rope within windows."""
    keys = Fields({"attention.sliding_window": 1024}, "x")
    own = ARCHITECTURES[name].own(Source(keys, num_layers, 32, 4608, 256))
    assert own["query_pre_attn_scalar"] == scalar
    assert own.get("rope_local_base_freq") == (10_000.0 if name == "gemma3" else None)
    assert own["layer_types"].count("full_attention") == num_layers // (6 if name == "gemma3" else 2)


def test_tokens_that_a_file_has_not_are_null(good, tmp_path):
    metadata = {f"tokenizer.ggml.{kind}_token_id": 2**32 - 1 for kind in ("bos", "eos", "eot", "padding")}
    file = open_gguf(good)
    _, config = config_of(GgufFile(file.path, {**file.metadata, **metadata}, file.tensors, 0))
    assert [config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [None] * 3
    assert generation_of(metadata) == {}


def test_the_package_may_be_missing(good, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UsageError, match=r"the extra gguf, .*\.\[gguf\]"):
        open_gguf(good)
