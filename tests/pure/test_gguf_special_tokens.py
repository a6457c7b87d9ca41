"""Special tokens from GGUF metadata: what a text begins and ends with, and what ends an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.pure.test_gguf_tokenizer import END, folder_of, made
from tests.pure.vocabularies import G, byte_level, sentencepiece

from coterie.checkpoint.generation import end_ids
from coterie.checkpoint.gguf_tokenizer import tokenizer_files


@pytest.mark.parametrize(
    ("metadata", "around"),
    [
        (byte_level("gpt-2"), (0, 0)),
        (byte_level("gpt-2", add_bos_token=True), (1, 0)),
        (byte_level("llama-bpe"), (1, 0)),
        (byte_level("llama-bpe", add_bos_token=False), (0, 0)),
        (byte_level("llama-bpe", bos_token_id=None), (0, 0)),
        (byte_level("gpt-2", add_eos_token=True), (0, 0)),
        (byte_level("llama-bpe", eos_token_id=END, add_eos_token=True), (1, 1)),
        (sentencepiece(True, ()), (1, 0)),
        (sentencepiece(True, (), add_bos_token=False, add_eos_token=True), (0, 1)),
    ],
)
def test_what_a_text_begins_and_ends_with(metadata: dict[str, Any], around: tuple[int, int], tmp_path: Path) -> None:
    ours = made(metadata)
    before = [metadata[G + "bos_token_id"]] if around[0] else []
    after = [metadata[G + "eos_token_id"]] if around[1] else []
    assert ours.encode("") == before + after
    assert ours.encode("it") == before + ours.encode("it", add_special_tokens=False) + after
    config = json.loads((folder_of(metadata, tmp_path) / "tokenizer_config.json").read_text())
    assert (config["add_bos_token"], config["add_eos_token"]) == tuple(map(bool, around))


def test_only_tokens_that_users_defined_are_part_of_an_answer() -> None:
    metadata = byte_level("qwen2")
    ours = made(metadata)
    assert ours.decode(ours.encode("a<s>b<|end|>c<think>d")) == "abc<think>d"
    named = made({**metadata, G + "eot_token_id": len(metadata[G + "tokens"]) - 1})
    assert named.decode(named.encode("c<think>d")) == "cd"
    bare = made({key: value for key, value in metadata.items() if key != G + "token_type"})
    assert bare.decode(bare.encode("a<s>b<|end|>")) == "ab<|end|>"


@pytest.mark.parametrize(
    ("added", "named", "ends"),
    [
        ([], {}, []),
        (["<x>"], {"eos": "<x>"}, ["<x>"]),
        (["<x>", "<y>", "<z>"], {"eom": "<x>", "eot": "<y>", "eos": "<z>"}, ["<z>", "<y>", "<x>"]),
        (["<|end_of_text|>", "<|eot_id|>"], {"eos": "<|eot_id|>"}, ["<|eot_id|>", "<|end_of_text|>"]),
        (["<eos>", "<end_of_turn>"], {"eos": "<eos>"}, ["<eos>", "<end_of_turn>"]),
        (["<|im_end|>", "<|endoftext|>"], {"eos": "<|endoftext|>"}, ["<|endoftext|>", "<|im_end|>"]),
        (["<|return|>", "<|call|>"], {"eos": "<|return|>"}, ["<|return|>", "<|call|>"]),
        (["<end_of_turn>"], {}, ["<end_of_turn>"]),
        (["<eos>", "<turn|>", "<|tool_response>"], {"eos": "<eos>"}, ["<eos>", "<turn|>", "<|tool_response>"]),
    ],
)
def test_all_tokens_that_end_an_answer(
    added: list[str], named: dict[str, str], ends: list[str], tmp_path: Path
) -> None:
    metadata = byte_level("gpt-2")
    if "<|return|>" not in added:
        metadata[G + "tokens"] = [token if token != "<|end|>" else "<|other|>" for token in metadata[G + "tokens"]]
    first = len(metadata[G + "tokens"])
    metadata[G + "tokens"] = metadata[G + "tokens"] + added
    metadata[G + "token_type"] = metadata[G + "token_type"] + [3] * len(added)
    ids = {token: first + i for i, token in enumerate(added)}
    metadata |= {f"{G}{name}_token_id": ids[token] for name, token in named.items()}
    assert end_ids(folder_of(metadata, tmp_path), {}) == tuple(ids[token] for token in ends)


def test_a_word_that_looks_like_an_end_is_none(tmp_path: Path) -> None:
    metadata = byte_level("gpt-2")
    metadata[G + "token_type"] = [1] * len(metadata[G + "tokens"])
    assert end_ids(folder_of(metadata, tmp_path), {}) == ()


def test_named_tokens_are_in_the_configs() -> None:
    files = tokenizer_files(sentencepiece(True, ("<pad>",), padding_token_id=259, unknown_token_id=None))
    config, generation = json.loads(files["tokenizer_config.json"]), json.loads(files["generation_config.json"])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    assert config.items() >= named.items()
    assert generation == {"bos_token_id": 1, "pad_token_id": 259, "eos_token_id": [2]}
