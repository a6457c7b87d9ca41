"""Text to token ids and back: tokenizer.json through the `tokenizers` library, and incremental detokenization.

Knows nothing about models or chat templates.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from coterie.checkpoint import long_text
from coterie.checkpoint.files import read_bytes, read_object_if_present
from coterie.checkpoint.long_text import BYTE_OF
from coterie.checkpoint.vocabulary import Vocabulary, digest, read_tokenizer, unstored_vocabulary
from coterie.checkpoint.wordpiece import VOCABULARY, wordpiece
from coterie.core.errors import CheckpointError, RequestError

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
_OTHERS = ("*tokenizer*.model", "sentencepiece*.model", "vocab.txt")  # files of older checkpoints, named in errors
LONG = 2048  # characters or tokens from which the batch API is used: only that releases the GIL
KEPT = 1 << 20  # maximum number of tokens of the last text, which is cached
_BROKEN = "\ufffd"  # how a decoder writes bytes that are not (yet) a character
_LAST_BYTES = 3  # an incomplete character has at most 3 bytes, and so began at most 3 tokens ago
_BROKEN_TOKENS, _MAX_BROKEN_TOKENS = 16, 64  # held back before the certain part is released; before all is released


BYTE_SPELLED = re.compile("<0x([0-9A-F]{2})>")  # byte-fallback tokens


class Tokenizer:
    """The tokenizer of a checkpoint folder. Folders with equal tokenizer.json share one."""

    def __init__(self, library_tokenizer: tokenizers.Tokenizer | Vocabulary) -> None:
        found = library_tokenizer
        self._vocabulary = found if isinstance(found, Vocabulary) else unstored_vocabulary(found)
        read = self._vocabulary.get()
        self._last: tuple[str, bool, list[int]] | None = None
        added = read.library.get_added_tokens_decoder()
        self.special_ids = frozenset([token_id for token_id, token in added.items() if token.special])
        decoder = read.library.decoder
        parts = [] if decoder is None else list(_parts(json.loads(decoder.__getstate__())))
        self._decodes = {str(part["type"]) for part in parts}
        replaced = [part["pattern"].get("String") for part in parts if part["type"] == "Replace"]
        self._spells_spaces = "Metaspace" in self._decodes or "\u2581" in replaced
        self._vocab_size = read.size

    @staticmethod
    def from_folder(path: str | Path) -> Tokenizer:
        """Read tokenizer.json, or the vocab.txt of an older BERT checkpoint.

        Raises CheckpointError if it is missing or damaged.
        """
        file = Path(path) / TOKENIZER
        if not file.exists():
            says = read_object_if_present(Path(path) / TOKENIZER_CONFIG)
            if (made := wordpiece(Path(path), says, special_tokens(path))) is not None:
                return _of(made, keeps=True)
            others = ", ".join(p.name for kind in _OTHERS for p in sorted(Path(path).glob(kind)))
            fact = "the file does not exist" + (f" (but {others})" if others else "")
            raise CheckpointError(str(file), fact, "save the tokenizer as tokenizer.json")
        data = read_bytes(file)
        try:
            found = _of(data)
        except BaseException as error:
            _refuse_others(error)
            raise CheckpointError(str(file), f"not a tokenizer: {error}", "download the file again") from None
        found._vocabulary.files[file] = None
        return found

    @property
    def library(self) -> tokenizers.Tokenizer:
        """The `tokenizers` library's object."""
        return self._vocabulary.get().library

    def held(self) -> object:
        """An object that keeps the vocabulary from being evicted as long as it is referenced."""
        return self._vocabulary.get()

    @property
    def is_read(self) -> bool:
        """Whether the vocabulary is in memory; if it was evicted, the next use reads it again."""
        return self._vocabulary.is_read

    @property
    def vocab_size(self) -> int:
        """One more than the largest id of the vocabulary itself, without added tokens.

        A model may lack rows for added tokens: Gemma 3's text models have none for the image token.
        """
        return self._vocab_size

    def differs(self, other: Tokenizer) -> str:
        """A sentence about one token that differs in another tokenizer; empty if both have the same vocabulary.

        Added tokens do not count: fine-tunes of one base may differ in them.
        """
        mine, its = self._vocabulary.get(), other._vocabulary.get()
        if mine.model == its.model:
            return ""
        ours, theirs = (
            {number: token for token, number in read.library.get_vocab(with_added_tokens=False).items()}
            for read in (mine, its)
        )
        apart = next((number for number, token in ours.items() if theirs.get(number, token) != token), None)
        return "" if apart is None else f"token {apart} is {ours[apart]!r} in one and {theirs[apart]!r} in the other"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text. Text from a chat template already contains its special tokens.

        Raises CheckpointError if the library fails, as it may with a damaged tokenizer.json that it could read.
        """
        last = self._last
        if last is None or last[:2] != (text, add_special_tokens):  # one prompt may be encoded repeatedly in a row
            last = (text, add_special_tokens, list(self._encoded(text, add_special_tokens).ids))
            self._last = last if len(last[2]) <= KEPT else None
        return list(last[2])

    def has_more(self, text: str, count: int) -> bool:
        """Whether a text surely has more than `count` tokens; False if only tokenizing all of it could tell."""
        return long_text.has_more(self.library, text, count)

    def cut(self, text: str, count: int) -> str:
        """The text, or a prefix of a long one that contains its first `count` tokens and more, special tokens aside."""
        return long_text.cut(self.library, text, count) if len(text) > LONG else text

    def encode_within(self, text: str, max_tokens: int) -> list[int]:
        """The token ids of a text, truncated so that they and the special tokens around it are at most `max_tokens`."""
        text = self.cut(text, max_tokens)
        ids = self.encode(text)
        if len(ids) <= max_tokens:
            return ids
        library, bare = self.library, self._encoded(text, False)
        bare.truncate(max(max_tokens - library.num_special_tokens_to_add(False), 0))
        return list(library.post_process(bare, None, True).ids)

    def encode_pair(self, first: str, second: str, max_tokens: int) -> tuple[list[int], list[int]]:
        """The token ids of a pair of texts with special tokens, and their token types.

        The second text is truncated to fit `max_tokens`. Raises RequestError if the first one leaves no room for it.
        """
        if self.has_more(first, max_tokens):
            fact = f"has more than the {max_tokens} tokens that the expert reads with a document"
            raise RequestError("query", fact, "ask something shorter")
        library, second = self.library, self.cut(second, max_tokens)
        bare, behind = self._encoded(first, False), self._encoded(second, False)
        room = max_tokens - library.num_special_tokens_to_add(True) - len(bare.ids)
        if room < min(len(behind.ids), 1):
            fact = f"has {len(bare.ids)} tokens, and with a document the expert reads {max_tokens}"
            raise RequestError("query", fact, "ask something shorter")
        behind.truncate(room)
        found = library.post_process(bare, behind, True)
        return list(found.ids), list(found.type_ids)

    def beginning(self, text: str, count: int) -> str:
        """The part of a text that its first `count` tokens cover."""
        places = self.library.encode_batch([text], add_special_tokens=False)[0].offsets[:count]
        return text[: places[-1][1]] if places else ""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._decoded(ids, True)

    def spelled(self, ids: Sequence[int]) -> str:
        """The text of token ids, with special tokens spelled out."""
        return self._decoded(ids, False)

    def _decoded(self, ids: Sequence[int], skips_special: bool) -> str:
        """If the library fails, decode token by token, so that other answers in the batch are not affected."""
        library = self.library
        try:
            if len(ids) < LONG:
                return str(library.decode(list(ids), skip_special_tokens=skips_special))
            return str(library.decode_batch([list(ids)], skip_special_tokens=skips_special)[0])
        except BaseException as error:
            _refuse_others(error)
            kept = [one for one in ids if not (skips_special and one in self.special_ids)]
            return b"".join([self.token_bytes(one) for one in kept]).decode("utf-8", "replace")

    def _encoded(self, text: str, add_special_tokens: bool) -> Any:
        library = self.library
        try:
            if len(text) < LONG:
                return library.encode(text, add_special_tokens=add_special_tokens)
            return library.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        except BaseException as error:
            _refuse_others(error)
            fact = f"fails on a text of {len(text)} characters: {error}"
            raise CheckpointError(TOKENIZER, fact, "use the tokenizer that belongs to the weights") from None

    def token_id(self, token: str) -> int | None:
        """The id of a token given by its exact text, or None."""
        found = self.library.token_to_id(token)
        return None if found is None else int(found)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token, which may be part of a character; empty for an id without a token."""
        token = self.library.id_to_token(token_id)
        if token is None:
            return b""
        if "ByteLevel" in self._decodes:
            spelled = [BYTE_OF.get(symbol) for symbol in token]
            if None not in spelled:
                return bytes([byte for byte in spelled if byte is not None])
        if "ByteFallback" in self._decodes and (byte := BYTE_SPELLED.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return str(token).replace("\u2581", " ").encode() if self._spells_spaces else str(token).encode()

    def detokenizer(self, kept: Sequence[str] = ()) -> Detokenizer:
        """A new incremental detokenizer; tokens in `kept` are shown even if they are special."""
        return Detokenizer(self, self.among(*kept))

    def among(self, *texts: str) -> dict[int, str]:
        """Those of the texts that are single tokens, by id."""
        ids = {token: self.token_id(token) for token in texts}
        return {token_id: token for token, token_id in ids.items() if token_id is not None}


class Detokenizer:
    """Turns one answer's tokens into text as they come; the pieces together are the text of all tokens.

    A token's text may depend on the one before it (a leading space). So a window of recent tokens is decoded, with and
    without the new ones, and the difference is the next piece.

        tokens   ... | returned | waiting |      decode("returned" + "waiting") minus decode("returned")
                     ^start     ^given

    Subclasses separate reasoning from the answer; `reasoning_tokens` counts the tokens of the former.
    """

    def __init__(self, tokenizer: Tokenizer, kept: Mapping[int, str] = MappingProxyType({})) -> None:
        self._tokenizer, self._kept = tokenizer, kept
        self._in_use = tokenizer.held()  # keeps the vocabulary in memory until the answer has ended
        self._ids: list[int] = []
        self._given = 0
        self._before = ""
        self.reasoning_tokens = 0

    def follow(self, ids: Sequence[int]) -> None:
        """Call before any token, if the answer continues these tokens: its first word may then begin with a space."""
        for count in range(1, _LAST_BYTES + 2):  # the last token may be part of a character
            last = list(ids[-count:])
            before = self._tokenizer.decode(last)
            if not before.endswith(_BROKEN):
                self._ids, self._given, self._before = last, len(last), before
                return

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is certain now; often empty, never half a UTF-8 character."""
        if token_id in self._kept:
            return self._rest() + self._kept[token_id]
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        return self._sure(text) if text.endswith(_BROKEN) else self._give(text)

    def flush(self) -> str:
        """The rest, when the answer has ended; bytes that never became a character are shown as U+FFFD."""
        return self._rest()

    def take_reasoning(self) -> str:
        """The reasoning since the last call, which is not part of the text; here always empty."""
        return ""

    def _rest(self) -> str:
        return self._give(self._tokenizer.decode(self._ids))

    def _sure(self, broken: str) -> str:
        """The certain part of a text whose end is not a complete character: nothing, unless many tokens are held back.

        Then it is not going to become a character, and decoding all held tokens at each new one would be quadratic.
        """
        held = len(self._ids) - self._given
        if held >= _MAX_BROKEN_TOKENS:
            return self._give(broken)
        for waiting in range(1, _LAST_BYTES + 1) if held >= _BROKEN_TOKENS else ():
            sure = self._tokenizer.decode(self._ids[:-waiting])
            if sure + self._tokenizer.decode(self._ids[-waiting:]) == broken:  # no character is split there
                return self._give(sure, waiting)
        return ""

    def _give(self, text: str, waiting: int = 0) -> str:
        """Return the new part of `text`, the decoding of all held tokens except the last `waiting`, which stay held."""
        delta = text[len(self._before) :]
        del self._ids[: self._given]
        self._given = len(self._ids) - waiting
        self._before = self._tokenizer.decode(self._ids[: self._given])
        return delta


def special_tokens(path: str | Path) -> dict[str, str]:
    """A folder's special tokens, name (bos_token, eos_token, ...) -> text. Raises CheckpointError."""
    folder = Path(path)
    found: dict[str, str] = {}
    for file in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        for key, value in read_object_if_present(folder / file).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a decoder, which may be a single one or a nested sequence."""
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _parts(part)
    else:
        yield decoder


def _refuse_others(error: BaseException) -> None:
    """Re-raise what is not the library's failure. Its Rust panics are BaseExceptions of a private type."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


_KNOWN: weakref.WeakValueDictionary[bytes, Tokenizer] = weakref.WeakValueDictionary()  # by content
_LAST: list[tuple[bytes, Tokenizer]] = []  # the last file read: the next folder mostly has the same one


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer file that may be readable."""
    return (folder / TOKENIZER).exists() or (folder / VOCABULARY).exists()


def _of(data: bytes, keeps: bool = False) -> Tokenizer:
    """The shared tokenizer for a tokenizer.json's contents. `keeps`: never evict it, as there is no file to reread."""
    for before, found in _LAST:
        if before == data:
            return found
    content = digest(data)
    found = _KNOWN.get(content) or Tokenizer(Vocabulary(read_tokenizer(data, content), keeps))
    _KNOWN[content] = found
    _LAST[:] = [(data, found)]
    return found
