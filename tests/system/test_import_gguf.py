"""`coterie import`, as a person uses it: a GGUF file with its tokenizer becomes an expert that every command takes."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
from tests.model import tiny
from tests.pure.vocabularies import G, byte_level, sentencepiece
from tests.system.commands import refused, run

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[gguf]'")
gguf_files = importlib.import_module("tests.model.gguf_files")

TEMPLATE = "{% for m in messages %}<|end|>{{ m.content }}{% endfor %}<|end|>"
TEXT = "It's 12 <|end|> XMLHttp"


def write(folder: Path, row: str, metadata: dict[str, Any], kind: str = "F32") -> Path:
    """A tiny random model with this vocabulary, as a GGUF file."""
    class_name, own = tiny.FAMILY_ROWS[row]
    size = {"vocab_size": len(metadata[f"{G}tokens"])} | {
        f"{name}_token_id": metadata[f"{G}{name}_token_id"] for name in ("bos", "eos")
    }
    tiny.FAMILY_ROWS["here"] = (class_name, own | size)
    try:
        tiny.save(tiny.make("here"), folder / "theirs", "fp32")
    finally:
        del tiny.FAMILY_ROWS["here"]

    def vocabulary(writer: Any) -> None:
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
        for key, value in metadata.items():
            if key not in writer.kv_data[0]:
                add[type(value)](key, value)

    return Path(gguf_files.write(folder / "theirs", folder / "tiny.gguf", kind, vocabulary=vocabulary))


@pytest.mark.parametrize(
    ("row", "metadata"),
    [
        ("qwen3", byte_level("qwen2", eos_token_id=2002)),
        ("llama", sentencepiece(True, ("<|end|>",))),
    ],
)
def test_an_imported_expert_answers_as_llama_cpp_does(row: str, metadata: dict[str, Any], tmp_path: Path) -> None:
    """From the same text to the same tokens, greedily."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    path = write(tmp_path, row, metadata | {"tokenizer.chat_template": TEMPLATE})
    printed = run("import", path, tmp_path / "experts" / row)
    assert printed.exit_code == 0, printed.output
    for word in ("mlp.down_proj", "from", "largest", "F32", "none", "->", "experts"):
        assert word in printed.stdout
    prompt, drawn = importlib.import_module("tests.model.in_llama_cpp").greedy(path, TEXT, 12)
    options = ("--raw", "--temperature", "0", "--max-tokens", "12", "--json")
    answer = json.loads(run("run", tmp_path / "experts", *options, TEXT).stdout)
    assert answer["prompt_tokens"] == len(prompt)
    ends = answer["token_ids"] != drawn
    assert answer["token_ids"] == drawn[: len(answer["token_ids"])]
    assert not ends or drawn[len(answer["token_ids"])] == metadata[f"{G}eos_token_id"]
    assert run("check", tmp_path / "experts").exit_code == 0
    assert json.loads(run("run", tmp_path / "experts", "--json", "--max-tokens", "2", "hi").stdout)["prompt_tokens"] > 0


def test_what_it_says_in_json_and_where_it_refuses(tmp_path: Path) -> None:
    metadata = byte_level("qwen2", eos_token_id=2002)
    path = write(tmp_path, "qwen2", metadata, "F16")
    report = json.loads(run("import", path, tmp_path / "four", "--weights", "int4", "--json").stdout)
    assert (report["architecture"], report["layers"], report["tables"]) == ("qwen2", "int4", "int8")
    assert {row["type"] for row in report["kinds"]} == {"Q4", "Q8", "F32"}
    assert all(0 < row["rms_error"] < 0.2 for row in report["kinds"] if row["type"] in ("Q4", "Q8"))
    assert all(row["found"] in (["F16"], ["F32"]) for row in report["kinds"])
    refused(run("import", path, tmp_path / "four"), "four", "exists already")
    refused(run("import", path, tmp_path / ("x" * 300)), "name too long", "check the path")
    words = ("--weights", "int3", "keep, keep8, bf16, int8, int6, int4")
    refused(run("import", path, tmp_path / "out", "--weights", "int3"), *words)
    odd = write(tmp_path / "odd", "qwen2", metadata | {f"{G}pre": "some-new-one"})
    refused(run("import", odd, tmp_path / "out"), "tiny.gguf", "tokenizer.ggml.pre", "some-new-one", "--tokenizer")
    pointer = tmp_path / "pointer.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 34\n")
    refused(run("import", pointer, tmp_path / "out"), "pointer.gguf", "is a pointer of Git LFS", "git lfs pull")
    assert not list(tmp_path.glob("out*"))
    assert run("import", odd, tmp_path / "out", "--tokenizer", tmp_path / "four").exit_code == 0
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "four" / "tokenizer.json").read_bytes()


def test_a_folder_of_files_becomes_a_folder_of_experts(tmp_path: Path) -> None:
    """What cannot be imported is told, and keeps nothing else back; what is there already is left as it is."""
    there = tmp_path / "models" / "publisher"
    file = write(there, "qwen2", byte_level("qwen2", eos_token_id=2002), "F16")
    gguf_files.write(there / "theirs", there / "big.gguf", "F16", split=10)
    first_part, *later_parts = sorted(there.glob("big-*"))
    first_part.unlink()
    shutil.rmtree(there / "theirs")
    shutil.copyfile(file, there / "a model (1)-00001-of-00001.gguf")
    (tmp_path / "models" / "junk.gguf").write_bytes(b"GGUF")
    (tmp_path / "models" / "folder.gguf").mkdir()
    (tmp_path / "models" / "gone.gguf").symlink_to("nowhere")
    first = run("import", tmp_path / "models", tmp_path / "out")
    assert first.exit_code == 2
    assert first.stderr.count("coterie: [") == 3
    assert "junk.gguf" in first.stderr
    assert "gone.gguf] does not exist" in first.stderr
    assert first_part.name in first.stderr
    assert "2 imported, 3 refused" in first.stdout
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["a-model-1", "tiny"]
    assert run("check", tmp_path / "out").exit_code == 0
    for name in ("junk", "gone"):
        (tmp_path / "models" / f"{name}.gguf").unlink()
    for part in later_parts:
        part.unlink()
    shutil.rmtree(tmp_path / "out" / "tiny")
    again = run("import", tmp_path / "models", tmp_path / "out", "--json")
    assert again.exit_code == 0
    report = json.loads(again.stdout)
    assert (list(report["experts"]), report["there"], report["refused"]) == (["tiny"], ["a-model-1"], {})
    shutil.copytree(there, tmp_path / "models" / "other")
    assert run("import", tmp_path / "models", tmp_path / "both").exit_code == 0
    both = [f"{folder}--{name}" for folder in ("other", "publisher") for name in ("a-model-1", "tiny")]
    assert sorted(one.name for one in (tmp_path / "both").iterdir()) == both
    shutil.copytree(there, tmp_path / "models" / "deep" / "other")
    refused(run("import", tmp_path / "models", tmp_path / "out"), "same name", "coterie import")
    refused(run("import", tmp_path / "models", tmp_path / "new", "--tokenizer", there), "--tokenizer", "alone")
    refused(run("import", tmp_path / "out", tmp_path / "new"), "*.gguf")


def test_a_file_that_may_not_be_read_keeps_nothing_else_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "models" / "a" / "closed.gguf"
    closed.parent.mkdir(parents=True)
    closed.write_bytes(b"GGUF")
    shutil.move(write(tmp_path / "made", "qwen2", byte_level("qwen2", eos_token_id=2002), "F16"), tmp_path / "models")
    is_file = Path.is_file

    def denied(path: Path) -> bool:
        if path == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", denied)
    result = run("import", tmp_path / "models", tmp_path / "out")
    assert result.exit_code == 2
    assert f"Permission denied: '{closed}'" in result.stderr
    assert "1 imported, 1 refused" in result.stdout


def test_who_serves_a_gguf_file_is_told_to_import_it(tmp_path: Path) -> None:
    (tmp_path / "models" / "deep").mkdir(parents=True)
    for name in ("a.gguf", "deep/b.gguf"):
        (tmp_path / "models" / name).write_bytes(b"GGUF")
    for command in ("serve", "check", "route"):
        words = (tmp_path / "models", *(["hi"] if command == "route" else []))
        refused(run(command, *words), "a.gguf, b.gguf", "imported first", f"coterie import {tmp_path}/models OUT")
    refused(run("run", tmp_path / "models" / "a.gguf", "hi"), "GGUF file", "coterie import", "a.gguf a")
    file = tmp_path / "composition.toml"
    for checkpoint in ("models", "models/a.gguf"):
        file.write_text(f'name = "x"\n[[expert]]\nname = "a"\ncheckpoint = "{checkpoint}"\n')
        refused(run("check", file), checkpoint, "a.gguf", "coterie import")
    refused(run("quantize", tmp_path / "models", tmp_path / "out"), "no config.json", "a.gguf", "coterie import")
    refused(run("quantize", tmp_path / "models" / "a.gguf", tmp_path / "out"), "is a file", "coterie import")


def test_where_others_keep_gguf_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LM Studio's folders, the Hugging Face cache and Ollama's store: found, and a command that imports all of them."""
    file = write(tmp_path / "made", "qwen2", byte_level("qwen2", eos_token_id=2002), "F16")
    studio, hub, ollama = tmp_path / "lm studio", tmp_path / "hub", tmp_path / "ollama"
    model = hub / "models--org--some-GGUF"
    manifests = ollama / "manifests" / "registry" / "library" / "tiny"
    for folder in (
        studio / "org" / "some-GGUF",
        model / "snapshots" / "abc",
        model / "refs",
        ollama / "blobs",
        manifests,
    ):
        folder.mkdir(parents=True)
    shutil.copy(file, studio / "org" / "some-GGUF" / "one.gguf")
    shutil.copy(file, model / "snapshots" / "abc" / "one.gguf")
    (model / "refs" / "main").write_text("abc")
    shutil.copy(file, ollama / "blobs" / "sha256-12")
    weights = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:12"}
    for tag, layers in (
        ("latest", [{"mediaType": "x", "digest": "sha256:34"}, weights]),
        ("1b", [weights]),
        ("old", 3),
    ):
        (manifests / tag).write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    (manifests / "gone").write_text(json.dumps({"layers": [{**weights, "digest": "sha256:56"}]}))
    (manifests / ".DS_Store").write_bytes(b"\xff")
    for other in ("hf.co/me/tiny", "hf.co/you/tiny"):
        (ollama / "manifests" / other).mkdir(parents=True)
        (ollama / "manifests" / other / "latest").write_text(json.dumps({"layers": [weights, weights]}))
    for root, found, names in (
        (studio, "GGUF files (one.gguf)", ["one"]),
        (hub, "GGUF files (one.gguf)", ["one"]),
        (ollama, "the GGUF files of Ollama's models", ["library--tiny", "me--tiny", "you--tiny"]),
    ):
        refused(run("check", root), "no expert, but", found, f"coterie import {quote(str(root))} OUT")
        assert run("import", root, tmp_path / "out" / root.name).exit_code == 0
        assert sorted(one.name for one in (tmp_path / "out" / root.name).iterdir()) == names
    (tmp_path / "home").mkdir()
    ollama.rename(tmp_path / "home" / "models")
    (tmp_path / "home" / "models" / "manifests" / "hf.co" / "me" / "tiny" / "latest").write_text("{")
    again = run("import", tmp_path / "home", tmp_path / "out" / "ollama")
    assert (again.exit_code, again.stderr.count("coterie: [")) == (2, 1)
    assert "tiny/latest] not valid JSON" in again.stderr
    assert "2 there already, 1 refused" in again.stdout
    refused(run("check", model), "GGUF files (one.gguf)")
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    refused(run("run", "org/some-GGUF", "hi"), "GGUF files (one.gguf)")
    refused(run("run", "org/none", "hi"), "no such model in the cache")


def test_what_no_folder_is_looked_into_for(tmp_path: Path) -> None:
    """Hidden folders, links that lead back, and later parts of a file that was cut."""
    expert = tmp_path / "models" / "tiny"
    run("import", write(tmp_path, "qwen2", byte_level("qwen2", eos_token_id=2002), "F16"), expert)
    (tmp_path / "models" / "again").symlink_to(tmp_path / "models")
    shutil.copytree(expert, tmp_path / "models" / ".cache" / "tiny")
    for part in (1, 2, 3):
        (tmp_path / "models" / f"big-0000{part}-of-00003.gguf").write_bytes(b"GGUF")
    report = json.loads(run("check", tmp_path / "models", "--json").stdout)
    assert (list(report["experts"]), list(report["left_out"])) == (["tiny"], ["big-00001-of-00003.gguf"])
    assert report["left_out"]["big-00001-of-00003.gguf"].endswith(".gguf big")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As late as can be: the weights are written, and do not reach the disk."""
    path = write(tmp_path, "qwen3", byte_level("qwen2", eos_token_id=2002))
    out = tmp_path / "experts" / "one"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as change:
        change.setattr(os, "fsync", full)
        refused(run("import", path, out), f"[{out}] the imported expert needs", "can be had; free some room")
    assert not out.parent.exists()
    assert run("import", path, out).exit_code == 0
