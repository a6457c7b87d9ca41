"""Reads tokenizer.json by the `tokenizers` library; vocabularies are shared between files and cached (LRU).

    tokenizer.json   {"version", "added_tokens": [...], ..., "decoder", | "model": {"type", "vocab": {...}, "merges"}}
                      read per file: added tokens and rules               held once for all files with equal bytes here

A vocabulary of 150,000 tokens takes 110 MB of memory and a third of a second to read. Fine-tunes of one base share it,
though often with different added tokens. The cache is bounded by MAX_TOKENS; the least recently used are evicted.
Knows nothing about texts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from coterie.checkpoint.files import read_bytes
from coterie.core.errors import CheckpointError

MAX_TOKENS = 1 << 21  # in all cached vocabularies: some 2 GB
_OWN_TOKENS = 1 << 12  # the cost of a file's own rules and added tokens, in tokens
_RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# The keys that the library writes before the model, always all. If one is missing, it may come after the model.
_BEFORE = {"version", "truncation", "padding", "added_tokens", *_RULES}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MODEL = re.compile(rb'"model"\s*:\s*\{\s*"type"\s*:')
_NO_MODEL = {"type": "BPE", "vocab": {}, "merges": []}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Read:
    """A file that was read: the digests of its content and of its vocabulary; `size`: largest id of that + 1."""

    library: tokenizers.Tokenizer
    content: bytes
    model: bytes
    size: int


class Vocabulary:
    """A handle to the cached content of equal files; reads it again if it was evicted. Thread-safe."""

    def __init__(self, read: Read, keeps: bool = False) -> None:
        """`keeps`: never evict it, since there is no file to reread it from."""
        self.files: dict[Path, None] = {}  # files with this content
        self._content, self._read = read.content, weakref.ref(read)
        self._kept = read if keeps else None
        _CACHE.touch(read)

    @property
    def is_read(self) -> bool:
        """Whether it is in memory, so that `get` is fast."""
        return self._read() is not None

    def get(self) -> Read:
        """The content; a reference to it keeps it in memory. Raises CheckpointError if its files are gone or differ."""
        read = self._read()
        if read is None:
            read = self._again()
            self._read = weakref.ref(read)
        _CACHE.touch(read)
        return read

    def _again(self) -> Read:
        for file in self.files:
            with contextlib.suppress(CheckpointError):
                data = read_bytes(file)
                if digest(data) == self._content:
                    return read_tokenizer(data, self._content)
        fact = "has changed since it was opened, or is gone"
        raise CheckpointError(str(next(iter(self.files))), fact, "rescan, or restart the server")


class _ReadCache:
    """An LRU cache of Reads, bounded by MAX_TOKENS."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reads: OrderedDict[bytes, Read] = OrderedDict()  # by content, most recently used last
        self._newest: Read | None = None
        self.evicted = False  # whether anything ever was

    def touch(self, read: Read) -> None:
        if read is self._newest:  # fast path: token after token of one answer
            return
        with self._lock:
            is_new = self._reads.get(read.content) is not read
            self._reads[read.content] = self._newest = read
            self._reads.move_to_end(read.content)
            while is_new and len(self._reads) > 1 and self._tokens() > MAX_TOKENS:
                self._reads.popitem(last=False)
                self.evicted = True

    def find(self, content: bytes = b"", model: bytes = b"") -> Read | None:
        """The Read with this content digest, or with this vocabulary digest."""
        with self._lock:
            if content:
                return self._reads.get(content)
            return next((read for read in self._reads.values() if read.model == model), None)

    def _tokens(self) -> int:
        models = {read.model: read.size for read in self._reads.values()}
        return sum(models.values()) + _OWN_TOKENS * len(self._reads)


_CACHE = _ReadCache()


def digest(data: bytes) -> bytes:
    """The digest that identifies a content."""
    return hashlib.sha256(data, usedforsecurity=False).digest()


def none_evicted() -> bool:
    """Whether no vocabulary was ever evicted, as is usual."""
    return not _CACHE.evicted


def unstored_vocabulary(library: tokenizers.Tokenizer) -> Vocabulary:
    """The vocabulary of a tokenizer that comes from no file; never evicted."""
    content = digest(library.to_str().encode())
    return Vocabulary(Read(library, content, content, _size(library)), keeps=True)


def read_tokenizer(data: bytes, content: bytes) -> Read:
    """Read a tokenizer.json whose digest is `content`. Raises what the library raises, and UnicodeDecodeError.

    Truncation and padding in the file are ignored, as in transformers: prompts need neither.
    """
    if found := _CACHE.find(content=content):
        return found
    start = max((match.start() for match in _MODEL.finditer(data)), default=0)
    rules = _rules(data[:start])
    model = content if rules is None else digest(data[start:])
    alike = None if rules is None else _CACHE.find(model=model)
    if alike is not None and (library := _beside(rules or {}, alike.library.model)):
        return Read(library, content, model, alike.size)
    made = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    made.no_truncation()
    made.no_padding()
    return Read(made, content, model, _size(made))


def _size(library: tokenizers.Tokenizer) -> int:
    return 1 + max(library.get_vocab(with_added_tokens=False).values(), default=-1)


def _rules(head: bytes) -> dict[str, Any] | None:
    """The keys before a file's model; None if the model is not the last key, or the order is unusual.

    `head` completed by a null model must parse as an object; that proves that it ends at a top-level key.
    """
    try:
        rules = json.loads(head + b'"model":null}')
    except ValueError:
        return None
    return rules if isinstance(rules, dict) and rules.keys() >= _BEFORE else None


def _beside(rules: dict[str, Any], model: tokenizers.models.Model) -> tokenizers.Tokenizer | None:
    """A tokenizer with these rules on a model in memory; None if its added tokens' ids would differ from the file's."""
    added = rules["added_tokens"]
    bare = tokenizers.Tokenizer.from_str(json.dumps({**rules, "added_tokens": [], "model": _NO_MODEL}))
    made = tokenizers.Tokenizer(model)
    for rule in _RULES:
        if (value := getattr(bare, rule)) is not None:
            setattr(made, rule, value)
    made.add_tokens([_added(token) for token in added])
    found = {number: token.content for number, token in made.get_added_tokens_decoder().items()}
    return made if found == {token["id"]: token["content"] for token in added} else None


def _added(token: dict[str, Any]) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token["content"], **{flag: token[flag] for flag in _FLAGS})
