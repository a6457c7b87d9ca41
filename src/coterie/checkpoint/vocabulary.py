"""tokenizer.json through the `tokenizers` library: vocabularies that files have in common are held once, and not all.

    tokenizer.json   {"version", "added_tokens": [...], ..., "decoder", | "model": {"type", "vocab": {...}, "merges"}}
                      read for each content: some tokens, rules           held once for all files that end alike

A vocabulary of 150,000 tokens takes 110 MB of memory and a third of a second to read. Fine-tunes of one base have the
same one, if often with other tokens added. Of more vocabularies than there is room for, those used last are held.
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

MAX_TOKENS = 1 << 21  # of vocabularies that are held: some 2 GB
_OWN_TOKENS = 1 << 12  # what the rest of a file counts for
_RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# What the library writes before the model, always all of it. A file where some is missing may have it behind.
_BEFORE = {"version", "truncation", "padding", "added_tokens", *_RULES}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MODEL = re.compile(rb'"model"\s*:\s*\{\s*"type"\s*:')
_NO_MODEL = {"type": "BPE", "vocab": {}, "merges": []}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Read:
    """A file that was read: its content's digest, that of its vocabulary, and one more than the largest id in that."""

    library: tokenizers.Tokenizer
    content: bytes
    model: bytes
    size: int


class Vocabulary:
    """What files of one content were read to, and are again where it was let go since. Threads may share it."""

    def __init__(self, read: Read, keeps: bool = False) -> None:
        """`keeps`: it is never let go, since there is no file to read it from again."""
        self.files: dict[Path, None] = {}  # that had this content
        self._content, self._read = read.content, weakref.ref(read)
        self._kept = read if keeps else None
        _CACHE.touch(read)

    @property
    def is_read(self) -> bool:
        """Whether it is there, so that `get` takes no time."""
        return self._read() is not None

    def get(self) -> Read:
        """What was read; who keeps it keeps it from being let go. Raises CheckpointError where its files have gone."""
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
    """What was used last, as far as there is room."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reads: OrderedDict[bytes, Read] = OrderedDict()  # by content, used last behind
        self._newest: Read | None = None
        self.evicted = False  # whether any ever was

    def touch(self, read: Read) -> None:
        if read is self._newest:  # a token of an answer after the other
            return
        with self._lock:
            is_new = self._reads.get(read.content) is not read
            self._reads[read.content] = self._newest = read
            self._reads.move_to_end(read.content)
            while is_new and len(self._reads) > 1 and self._tokens() > MAX_TOKENS:
                self._reads.popitem(last=False)
                self.evicted = True

    def find(self, content: bytes = b"", model: bytes = b"") -> Read | None:
        """What has this content, or this model."""
        with self._lock:
            if content:
                return self._reads.get(content)
            return next((read for read in self._reads.values() if read.model == model), None)

    def _tokens(self) -> int:
        models = {read.model: read.size for read in self._reads.values()}
        return sum(models.values()) + _OWN_TOKENS * len(self._reads)


_CACHE = _ReadCache()


def digest(data: bytes) -> bytes:
    """What names a content."""
    return hashlib.sha256(data, usedforsecurity=False).digest()


def none_evicted() -> bool:
    """Whether none was ever let go, which there is room for as a rule."""
    return not _CACHE.evicted


def unstored_vocabulary(library: tokenizers.Tokenizer) -> Vocabulary:
    """That of a tokenizer which no file has."""
    content = digest(library.to_str().encode())
    return Vocabulary(Read(library, content, content, _size(library)), keeps=True)


def read_tokenizer(data: bytes, content: bytes) -> Read:
    """Read a tokenizer.json, whose digest is `content`. Raises what the library raises, and UnicodeDecodeError.

    As transformers, whatever lengths a file cuts or fills texts to: prompts are neither.
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
    """What a file has before its model, which is then the last of it; None for one in another order.

    With a null behind it, it is an object: so it ends where a key of the file's own object begins.
    """
    try:
        rules = json.loads(head + b'"model":null}')
    except ValueError:
        return None
    return rules if isinstance(rules, dict) and rules.keys() >= _BEFORE else None


def _beside(rules: dict[str, Any], model: tokenizers.models.Model) -> tokenizers.Tokenizer | None:
    """A tokenizer of a model that is there; None where the file gives tokens other ids than it would."""
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
