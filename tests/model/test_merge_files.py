"""The files of a merged expert: bytes that no adapter touches, shards, a tokenizer, and the memory to write."""

import json
import shutil
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.model import adapters, tiny
from tests.model.test_merge import EMBED, HEAD, tensors_of

from coterie.checkpoint.folder import CONFIG, INDEX, SINGLE
from coterie.checkpoint.safetensors import read_header
from coterie.core.dtypes import DType
from coterie.models.fine_tunes import merged
from coterie.models.fine_tunes.adapter import Change, open_adapter
from coterie.models.fine_tunes.merge import merge_folder
from coterie.models.model import open_model


def test_what_no_adapter_touches_is_the_same_bytes(folder_of, tmp_path):
    base = shutil.copytree(folder_of("phi3", dtype="bf16"), tmp_path / "base")
    left_out = {".hidden", "pytorch_model.bin", "pytorch_model.bin.index.json"}
    for name in ("LICENSE", *left_out):
        (base / name).write_text("all of it")
    touched = ["model.layers.1.self_attn.qkv_proj", "model.layers.2.mlp.down_proj"]
    parts = adapters.parts(tiny.load(base), touched)
    made = merge_folder(base, adapters.write(tmp_path / "adapter", parts), tmp_path / "out")
    before, after = tensors_of(base), tensors_of(made.folder)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {f"{module}.weight" for module in touched}
    assert json.loads((made.folder / CONFIG).read_text()) == json.loads((base / CONFIG).read_text())
    assert {f.name for f in made.folder.iterdir()} == {f.name for f in base.iterdir()} - left_out
    with safe_open(made.folder / SINGLE, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert (made.folder / "LICENSE").read_text() == "all of it"
    offsets = [open_model(made.folder).checkpoint.tensors[v.name].offset for v in open_model(base).graph.weights]
    assert offsets == sorted(offsets)


def test_shards_become_the_same_file(folder_of, tmp_path):
    tiny.save(tiny.make("llama"), tmp_path / "shards", max_shard_size="60KB")
    assert (tmp_path / "shards" / INDEX).exists()
    adapter = adapters.write(tmp_path / "adapter", adapters.parts(tiny.make("llama")))
    whole = merge_folder(folder_of("llama"), adapter, tmp_path / "whole")
    parted = merge_folder(tmp_path / "shards", adapter, tmp_path / "parted")
    assert [p.name for p in parted.folder.glob("*.safetensors*")] == [SINGLE]
    assert (whole.folder / SINGLE).read_bytes() == (parted.folder / SINGLE).read_bytes()


def test_a_head_that_is_stored_twice_is_stored_once(folder_of, tmp_path):
    base = shutil.copytree(folder_of("llama-tied"), tmp_path / "base")
    tensors = load_file(base / SINGLE)
    save_file({**tensors, f"{HEAD}.weight": tensors[f"{EMBED}.weight"].clone()}, base / SINGLE, {"format": "pt"})
    adapter = adapters.write(tmp_path / "adapter", adapters.parts(tiny.load(base)))
    made = merge_folder(base, adapter, tmp_path / "out")
    once = merge_folder(folder_of("llama-tied"), adapter, tmp_path / "once")
    assert (made.folder / SINGLE).read_bytes() == (once.folder / SINGLE).read_bytes()


def test_pieces_give_what_the_whole_gives_in_bounded_memory(folder_of, tmp_path, monkeypatch):
    base = folder_of("llama")
    parts = adapters.parts(tiny.load(base), ["up_proj"], dora=True)
    adapter = adapters.write(tmp_path / "adapter", parts, use_dora=True)
    whole = load_file(merge_folder(base, adapter, tmp_path / "whole").folder / SINGLE)
    monkeypatch.setattr(merged, "PIECE_WEIGHTS", 5 * 48 + 47)
    for name, found in load_file(merge_folder(base, adapter, tmp_path / "pieces").folder / SINGLE).items():
        torch.testing.assert_close(found, whole[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16])
def test_memory_is_bounded(dtype, tmp_path, monkeypatch):
    """The factors in float32 and ten pieces, of a matrix a hundred pieces long."""
    rows, columns, rank, piece = 20_000, 64, 2, 200 * 64
    types = {DType.F32: torch.float32, DType.BF16: torch.bfloat16, DType.F16: torch.float16}
    tensors = {
        "w": torch.randn(rows, columns).to(types[dtype]),
        "a": torch.randn(rank, columns),
        "b": torch.randn(rows, rank),
    }
    save_file(tensors, tmp_path / "f.safetensors")
    infos = read_header(tmp_path / "f.safetensors")
    adapter = adapters.write(tmp_path / "adapter", {"m": adapters.Part(tensors["a"], tensors["b"])}, r=rank)
    change = open_adapter(adapter).changes["m.weight"]
    assert isinstance(change, Change)
    monkeypatch.setattr(merged, "PIECE_WEIGHTS", piece)
    tracemalloc.start()
    size = sum(len(data) for data in merged.pieces(infos["w"], change, dtype, merged.Sums()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == dtype.size_bytes * rows * columns
    assert peak <= 4 * (rank * (rows + columns) + 10 * piece)


def test_files_of_an_adapters_tokenizer_win(folder_of, tmp_path):
    base = shutil.copytree(folder_of("llama"), tmp_path / "base")
    for name in ("chat_template.jinja", "special_tokens_map.json", "generation_config.json"):
        (base / name).write_text("{}")
    adapter = adapters.write(tmp_path / "adapter", adapters.parts(tiny.load(folder_of("llama"))))
    (adapter / "tokenizer_config.json").write_text('{"chat_template": "mine"}')
    (adapter / "README.md").write_text("mine")
    made = merge_folder(base, adapter, tmp_path / "out").folder
    assert json.loads((made / "tokenizer_config.json").read_text()) == {"chat_template": "mine"}
    assert (made / "special_tokens_map.json").exists()
    assert not (made / "chat_template.jinja").exists()
    assert not (made / "README.md").exists()
    (adapter / "tokenizer_config.json").write_text('{"padding_side": "left"}')  # without a template
    kept = merge_folder(base, adapter, tmp_path / "kept").folder
    assert (kept / "chat_template.jinja").read_text() == "{}"
    (adapter / "chat_template.jinja").write_text("ours")
    again = merge_folder(base, adapter, tmp_path / "again").folder
    assert (again / "chat_template.jinja").read_text() == "ours"
