"""Damaged files of every kind: each opens, or is refused by an error of ours in one line, in seconds.

The seeds are fixed, so that a case which fails can be made again.
Knows nothing about what files mean.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import tomllib
import zipfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tests.fuzz import mutate
from tests.system import tiny

from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.files import parse_object, read_text
from coterie.checkpoint.folder import Checkpoint
from coterie.checkpoint.safetensors import read_header
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.composition.composition import load_composition
from coterie.composition.routers.lexical import HashSettings, LexicalWeights, read_weights, write_weights
from coterie.core.errors import CheckpointError, CompositionError, CoterieError, UsageError
from coterie.core.trace import Slice, Trace, read_trace, write_trace
from coterie.core.trace_svg import render
from coterie.models.fine_tunes.adapted import open_adapted
from coterie.models.model import open_model
from coterie.plan.mix import Mix
from coterie.plan.workload_file import read_workload
from coterie.spec.load import load_machine, parse_machine

CASES = 50
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0, "mscale": 1.3}


def holds(make: Callable[[random.Random], object], cases: int = CASES) -> int:
    """How many of the cases were refused, each as it should be."""
    refused = 0
    for seed in range(cases):
        begun_s, said = time.process_time(), ""
        try:
            make(random.Random(seed))
        except CoterieError as error:
            refused, said = refused + 1, str(error)
        assert said.isprintable(), seed
        assert len(said) < 3200, seed
        assert time.process_time() - begun_s < 5, seed
    return refused


def header(tensors: Any, data: bytes = b"") -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + data


def damaged_folder(sound: Path, name: str, case: Path, rng: random.Random) -> Path:
    """A copy of a folder in which one file is damaged."""
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(sound, case)
    data = (sound / name).read_bytes()
    if name.endswith(".json"):
        changed = mutate.json_text(rng, json.loads(data))
    elif rng.random() < 0.2:
        changed = mutate.raw(rng, data[:2000]) + data[2000:]
    else:
        end = 8 + int.from_bytes(data[:8], "little")
        changed = header(mutate.json_text(rng, json.loads(data[8:end])), data[end:])
    (case / name).write_bytes(changed)
    return case


FILES = ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_with_a_damaged_file(name: str, tmp_path: Path) -> None:
    sound = tiny.write_expert(tmp_path / "sound", 1, rope_scaling=YARN)
    (sound / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 1], "temperature": 0.7}))

    def use(rng: random.Random) -> None:
        folder = damaged_folder(sound, name, tmp_path / "case", rng)
        open_model(folder)
        tokenizer, template = Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder)
        ids = tokenizer.encode("a <|user|> b \u00e9 12")
        tokenizer.decode(ids)
        if template is not None:
            template.render([{"role": "user", "content": "x"}])

    assert CASES // 10 < holds(use) < CASES


def test_a_damaged_index(tmp_path: Path) -> None:
    whole = tiny.write_expert(tmp_path / "whole", 1)
    names = list(read_header(whole / "model.safetensors"))
    shutil.move(whole / "model.safetensors", whole / "one.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "one.safetensors")}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    open_model(whole)

    def use(rng: random.Random) -> None:
        open_model(damaged_folder(whole, "model.safetensors.index.json", tmp_path / "case", rng))

    assert CASES // 2 < holds(use) < CASES


def test_damaged_adapters(tmp_path: Path) -> None:
    base = open_model(tiny.write_expert(tmp_path / "base", 1))
    sound = tiny.write_adapter(tmp_path / "sound", ("q_proj", "down_proj"))

    def use(rng: random.Random) -> None:
        name = rng.choice(("adapter_config.json", "adapter_model.safetensors"))
        open_adapted(base, damaged_folder(sound, name, tmp_path / "case", rng))

    assert CASES // 2 < holds(use) < CASES


def toml(value: Any) -> str:
    """Any JSON value as TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    return "{}" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def damaged_toml(rng: random.Random, sound: dict[str, Any]) -> bytes:
    """One in ten is as it was, so that it is seen to be sound: most damage is refused."""
    tree = sound if rng.random() < 0.1 else mutate.tree(rng, sound)
    pairs = tree.items() if isinstance(tree, dict) else ()
    data = "".join(f"{json.dumps(key)} = {toml(item)}\n" for key, item in pairs).encode("utf-8", "replace")
    return mutate.raw(rng, data) if rng.random() < 0.2 else data


def test_damaged_compositions(tmp_path: Path) -> None:
    for name in "ab":
        tiny.write_expert(tmp_path / name, 1)
    rules = [{"expert": "a", "keywords": ["x"]}, {"expert": "b", "pattern": "x+"}]
    router = {"kind": "rules", "fallback": "a", "rule": rules}
    experts = [{"name": name, "checkpoint": name, "description": "d"} for name in "ab"]

    def use(rng: random.Random) -> None:
        file = tmp_path / "c.toml"
        file.write_bytes(damaged_toml(rng, {"name": "c", "router": router, "expert": experts}))
        load_composition(file)

    assert CASES // 2 < holds(use) < CASES


def test_damaged_machines_and_stacks(tmp_path: Path) -> None:
    own = files("coterie.spec")
    machine = tomllib.loads((own / "machines" / "h100.toml").read_text())
    stack = tomllib.loads((own / "stacks" / "trtllm-2024.toml").read_text())

    def use(rng: random.Random) -> None:
        parse_machine(damaged_toml(rng, machine).decode("utf-8", "replace"), "m.toml")

    def use_stack(rng: random.Random) -> None:
        (tmp_path / "s.toml").write_bytes(damaged_toml(rng, stack))
        load_machine(f"dgx-h100:stack={tmp_path / 's.toml'}")

    assert CASES // 2 < holds(use) < CASES
    assert CASES // 2 < holds(use_stack) < CASES


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_damaged_workloads(suffix: str, tmp_path: Path) -> None:
    rows = [{"timestamp": at, "prompt_tokens": 10, "new_tokens": 5, "expert": "a"} for at in (0.5, 1, 7.25)]

    def use(rng: random.Random) -> None:
        tree = mutate.tree(rng, rows)
        file = tmp_path / f"w{suffix}"
        if suffix == ".jsonl":
            data = "".join(json.dumps(row) + "\n" for row in tree).encode() if isinstance(tree, list) else b"1\n"
        else:
            cells = [list(map(str, row.values())) if isinstance(row, dict) else [str(row)] for row in tree]
            lines = [",".join(rows[0]), *(",".join(row) for row in cells)]
            data = "\n".join([*lines, ""]).encode("utf-8", "replace")
        file.write_bytes(mutate.raw(rng, data) if rng.random() < 0.4 else data)
        read_workload(file, ["a", "b"], Mix("uniform", "uniform"), 0)

    assert CASES // 4 < holds(use) < CASES  # some are as good as before


def test_damaged_traces(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    write_trace(file, Trace([Slice("lane", "kind", "name", 0.0, 1.0, {"a": 1})], [], {"x": 1}))
    sound = json.loads(file.read_text())

    def use(rng: random.Random) -> None:
        file.write_bytes(mutate.json_text(rng, sound))
        render(read_trace(file))

    assert CASES // 4 < holds(use) < CASES


def test_damaged_router_files(tmp_path: Path) -> None:
    file = tmp_path / "r.npz"
    weights, bias = np.ones((2, 64), np.float32), np.zeros(2, np.float32)
    write_weights(file, LexicalWeights(("a", "b"), weights, bias, 1.0, 0.5, HashSettings(1, 3, 64), {"x": 1}))
    sound = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}

    def use(rng: random.Random) -> None:
        if rng.random() < 0.3:
            file.write_bytes(mutate.raw(rng, sound))
        else:
            hit = rng.choice(list(parts))
            with zipfile.ZipFile(file, "w") as archive:
                for name, data in parts.items():
                    archive.writestr(name, mutate.raw(rng, data) if name == hit else data)
        read_weights(file)

    assert CASES // 2 < holds(use) < CASES


def test_router_files_that_unpack_to_much_are_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "r.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("weights.npy", "w") as entry:
        for _ in range(257):
            entry.write(bytes(1 << 20))
    with pytest.raises(CompositionError, match=f"have {257 << 20} bytes, and {256 << 20} are possible"):
        read_weights(file)


def test_shapes_of_huge_numbers_are_refused_before_they_are_multiplied(tmp_path: Path) -> None:
    for shape in ([10**4000] * 1000, [1] * 65):
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}
        (tmp_path / "x.safetensors").write_bytes(header({"x": entry}, bytes(4)))
        with pytest.raises(CheckpointError, match="is not a list of whole numbers"):
            read_header(tmp_path / "x.safetensors")


def test_names_that_leave_the_folder_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out.safetensors").write_bytes(header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}))
    (tmp_path / "in" / "config.json").write_text("{}")
    for name in ("../out.safetensors", str(tmp_path / "out.safetensors"), "..", "", "x/../../out.safetensors", ["x"]):
        index = {"weight_map": {"x": name}}
        (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=r"which is not a file of this folder|which does not exist"):
            Checkpoint.open(tmp_path / "in")


def test_a_key_that_is_there_twice_is_found_in_linear_time() -> None:
    text = "{" + ", ".join(f'"k{i}": 0' for i in range(60_000)) + ', "k59999": 1}'
    begun_s = time.process_time()
    with pytest.raises(CheckpointError, match="'k59999' appears twice"):
        parse_object(text, "x")
    assert time.process_time() - begun_s < 5  # in pairs: minutes


def test_pipes_devices_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, fact in (("pipe", "a pipe or a device"), ("device", "a pipe or a device"), ("folder", "is a folder")):
        for read in (read_text, read_header):
            with pytest.raises(CheckpointError, match=fact):
                read(tmp_path / name)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(200 << 20)
    with pytest.raises(CheckpointError, match="has 200"):
        read_text(tmp_path / "large")


def test_errors_are_one_line_whatever_they_quote() -> None:
    for quoted in ("a\nb", "\x1b[31mred", "\ud800", "\u202eabc", "\u2028", "x" * 10**6):
        said = str(CheckpointError(quoted, quoted, quoted))
        assert said.isprintable()
        assert len(said) < 3200
    assert str(CheckpointError("x", "caf\u00e9 \u65e5\u672c \U0001f600")) == "[x] caf\u00e9 \u65e5\u672c \U0001f600"
    assert str(CheckpointError("x", "a\tb\\c")) == "[x] a\\tb\\c"


@pytest.mark.parametrize("text", ["x = " + "[" * 5000 + "]" * 5000, "x = " + "9" * 5000, "x = ", "\0"])
def test_toml_that_python_does_not_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    for use in (lambda: load_composition(file), lambda: parse_machine(text, "m"), lambda: load_machine(str(file))):
        with pytest.raises(UsageError, match="is not TOML"):
            use()


def broken_tokenizer(**changes: Any) -> Tokenizer:
    made = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1}, merges=[])).to_str())
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps({**made, **changes})))


def test_a_tokenizer_that_panics_is_an_error_of_its_caller() -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    with pytest.raises(CheckpointError, match="fails on a text of 41 characters"):
        broken_tokenizer(pre_tokenizer=pattern).encode("a" * 40 + "b")


def test_tokens_whose_decoder_panics_are_spelled_one_by_one() -> None:
    tokenizer = broken_tokenizer(decoder={"type": "Strip", "content": "a", "start": 0, "stop": 3})
    assert tokenizer.decode([1, 0]) == "ba"
    stream = tokenizer.detokenizer()
    assert [stream.push(1), stream.push(0), stream.flush()] == ["b", "a", ""]


def test_a_tokenizer_neither_cuts_nor_fills_prompts(tmp_path: Path) -> None:
    folder = tiny.write_expert(tmp_path / "x", 1)
    file = folder / "tokenizer.json"
    whole = tokenizers.Tokenizer.from_file(str(file))
    whole.enable_truncation(3)
    whole.enable_padding(length=10**12)
    whole.save(str(file))
    assert len(Tokenizer.from_folder(folder).encode("abcdef")) == 6
