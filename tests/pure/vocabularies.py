"""Vocabularies as GGUF files hold them, trained on made-up text, and llama.cpp's tokenizer for such a file."""

from __future__ import annotations

import ctypes
import importlib
import json
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers

G = "tokenizer.ggml."
SPACE = "\u2581"
UNREACHED = " unreached"  # a token that no merges make
# Parts of texts at whose borders pre-tokenizers differ.
PARTS = (
    *("it", "It's", "IT'S", "we'll", "WE'LL", "i'D", "'t", "'", "don't", "a", "B", "XMLHttp", "x_y", UNREACHED),
    *(" ", "  ", "    ", "\n", "\n\n", " \n ", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\u2028", "\x07"),
    *("1", "12", "123", "1234", "12345678", "\u00bd", "\u0663", "\u00b2"),
    *("\u65e5\u672c", "\u8a9e", "\ud55c\uae00", "\u304b\u306a", "\u30ab\u30ca", "\u3002", "\uff01"),
    *("\u0627", "\u0644", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u10d0", "\u0559"),
    *("\U0001f600", "\U0001f469\u200d\U0001f4bb", "\U0001f1e9\U0001f1ea", "\u20ac", "\u00b0", "\u00a9"),
    *("!", "?!", "...", "-", "\u2014", "_", "/", "//", "(a)", "[", "]", "{}", "$", "+", "=", "<=>", "^", "~", "|"),
    *(
        "`",
        '"',
        "\\",
        ".",
        ",",
        ";",
        ":",
        "#",
        "@",
        "&",
        "*",
        "%",
        "<s>",
        "<unk>",
        "<|end|>",
        "<think>",
        "<s",
        "<0x0A>",
    ),
)
LETTERS = (
    *("\u00e9", "\u00c9", "e\u0301", "\u041f\u0440\u0438\u0412\u0435\u0442", "\u043f\u0440\u0438", "\u00df", "\u01c5"),
    *("\u02b0", "\u0531", "\U0001d400", "\U00010400"),
)


def texts(count: int, seed: int, parts: tuple[str, ...] = PARTS + LETTERS) -> list[str]:
    """Texts of one to eight parts, in any order, and the empty one."""
    rng = random.Random(seed)
    return ["", *("".join(rng.choices(parts, k=rng.randint(1, 8))) for _ in range(count - 1))]


def byte_level(pre: str | None, **more: Any) -> dict[str, Any]:
    """A byte-level vocabulary whose merges cross every border, so that each cut shows in the tokens."""
    words, merges = _trained(True)
    tokens = [*words, UNREACHED.replace(" ", "\u0120"), "<s>", "<|end|>", "<think>"]
    found = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": [1] * (len(words) + 1) + [3, 3, 4]}
    found |= {"merges": [" ".join(pair) for pair in merges], "bos_token_id": len(words) + 1}
    return {G + key: value for key, value in (found | more).items() if value is not None}


def sentencepiece(prefix: bool, user_defined: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary with scores; its words were merged across spaces too."""
    words, merges = _trained(False)
    made = {"".join(pair): None for pair in merges}  # those that were merged first have the best scores
    ordered = [*made, *(word for word in words if word not in made)]
    plain = [word for word in ordered if word not in user_defined and word.replace(SPACE, " ") not in user_defined]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *user_defined, *plain]
    types = [2, 3, 3] + [6] * 256 + [4] * len(user_defined) + [5 if i % 9 == 8 else 1 for i in range(len(plain))]
    scores = [0.0] * (259 + len(user_defined)) + [-float(i) for i in range(len(plain))]
    found = {"model": "llama", "pre": "default", "tokens": tokens, "token_type": types, "scores": scores}
    found |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_space_prefix": prefix}
    return {G + key: value for key, value in (found | more).items() if value is not None}


@lru_cache(maxsize=2)
def _trained(in_bytes: bool) -> tuple[list[str], list[tuple[str, str]]]:
    made = LibraryTokenizer(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if in_bytes else []
    if in_bytes:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    limit = {} if in_bytes else {"limit_alphabet": 80}  # the rest is spelled in bytes
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False, **limit)
    common = tuple(part for part in PARTS + LETTERS if part != UNREACHED and "<" not in part)
    made.train_from_iterator(texts(1000, 7, common), trainer)
    model = json.loads(made.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [(left, right) for left, right in model["merges"]]


def llama_cpp(metadata: dict[str, Any], path: Path) -> Callable[[str], list[int]]:
    """What llama.cpp makes of texts, with this vocabulary in a GGUF file. Skips where it is not installed."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[peers]'")
    api = pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    silence = _silence()
    writer = gguf.GGUFWriter(path, "llama")
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
    for key, value in metadata.items():
        add[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert silence
    vocabulary = api.Llama(model_path=str(path), vocab_only=True, verbose=False)
    return lambda text: list(vocabulary.tokenize(text.encode(), add_bos=True, special=True))


@lru_cache(maxsize=1)
def _silence() -> Any:
    """Kept, since the library calls it whenever it has something to say."""
    api = importlib.import_module("llama_cpp")
    callback = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    return callback
