"""Text to token ids and back: tokenizer.json through the `tokenizers` library, and text that arrives token by token.

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
_OTHERS = ("*tokenizer*.model", "sentencepiece*.model", "vocab.txt")  # what older files have in its place
LONG = 2048  # letters, or tokens, from which a list of one is taken: for lists the library lets other threads go on
KEPT = 1 << 20  # tokens of the last text, at most
_BROKEN = "\ufffd"  # how a decoder writes bytes that are not a character (yet)
_LAST_BYTES = 3  # of a character, which has four at most, so that it may have begun so many tokens ago
_BROKEN_TOKENS, _MAX_BROKEN_TOKENS = 16, 64  # that are held back before what is sure of them is given out; or all


BYTE_SPELLED = re.compile("<0x([0-9A-F]{2})>")  # how vocabularies without a character spell its bytes


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
        """Read tokenizer.json, or the vocab.txt of an older folder of BERT's kind.

        Raises CheckpointError when it is missing or damaged.
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
        """The library's own."""
        return self._vocabulary.get().library

    def held(self) -> object:
        """What keeps its vocabulary from being let go for others, as long as somebody has it."""
        return self._vocabulary.get()

    @property
    def is_read(self) -> bool:
        """Whether its vocabulary is there; where it was let go for others, the next use reads it again."""
        return self._vocabulary.is_read

    @property
    def vocab_size(self) -> int:
        """One more than the largest id of the vocabulary itself, without tokens that were added to it.

        A model may lack a row for an added one: Gemma 3's text models have none for the token that stands for images.
        """
        return self._vocab_size

    def differs(self, other: Tokenizer) -> str:
        """One token that another tokenizer has otherwise, in words; empty where both have the same vocabulary.

        Tokens that were added to it do not count: fine-tunes of one base have others.
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
        """Token ids of a text. Text from a chat template has its special tokens already.

        Raises CheckpointError where the library fails, as it may with a damaged tokenizer.json that it has read.
        """
        last = self._last
        if last is None or last[:2] != (text, add_special_tokens):  # many choices of one prompt come in a row
            last = (text, add_special_tokens, list(self._encoded(text, add_special_tokens).ids))
            self._last = last if len(last[2]) <= KEPT else None
        return list(last[2])

    def has_more(self, text: str, count: int) -> bool:
        """Whether a text has more than `count` tokens; False where that is not known without cutting all of it."""
        return long_text.has_more(self.library, text, count)

    def cut(self, text: str, count: int) -> str:
        """The text, or of a long one a beginning that has more than `count` of its tokens, special ones aside."""
        return long_text.cut(self.library, text, count) if len(text) > LONG else text

    def encode_within(self, text: str, max_tokens: int) -> list[int]:
        """Token ids of a text with the special tokens that belong around it; where these are more than `max_tokens`,
        the text is cut and they stay.
        """
        text = self.cut(text, max_tokens)
        ids = self.encode(text)
        if len(ids) <= max_tokens:
            return ids
        library, bare = self.library, self._encoded(text, False)
        bare.truncate(max(max_tokens - library.num_special_tokens_to_add(False), 0))
        return list(library.post_process(bare, None, True).ids)

    def encode_pair(self, first: str, second: str, max_tokens: int) -> tuple[list[int], list[int]]:
        """Token ids of two texts with what belongs around them, and which text each token is of, as the tokenizer has
        it; of the second one no more than `max_tokens` leave room for.

        Raises RequestError where the first one leaves none.
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
        """The letters that the first `count` tokens of a text stand for."""
        places = self.library.encode_batch([text], add_special_tokens=False)[0].offsets[:count]
        return text[: places[-1][1]] if places else ""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._decoded(ids, True)

    def spelled(self, ids: Sequence[int]) -> str:
        """The text of token ids, special ones by their names."""
        return self._decoded(ids, False)

    def _decoded(self, ids: Sequence[int], skips_special: bool) -> str:
        """Where the library fails, tokens one by one: answers of others in the batch go on."""
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
        """The bytes that a token stands for, which may be part of a character; none for an id without a token."""
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
        """A new stream of tokens to text; those of `kept` that are tokens are shown, special or not."""
        return Detokenizer(self, self.among(*kept))

    def among(self, *texts: str) -> dict[int, str]:
        """Those of the texts that are tokens, by id."""
        ids = {token: self.token_id(token) for token in texts}
        return {token_id: token for token, token_id in ids.items() if token_id is not None}


class Detokenizer:
    """Turns one answer's tokens into text as they come; the pieces together are the text of all tokens.

    A piece is the text of a window with the new token less that without it, since a token's text may depend on
    the one before (a leading space); a window starts where a piece has been given out.

        tokens   ... | given out | waiting |      the first window decodes "given out", the second both
                     ^start      ^given

    Some tell what was thought from what is said: `reasoning_tokens` are tokens of the first.
    """

    def __init__(self, tokenizer: Tokenizer, kept: Mapping[int, str] = MappingProxyType({})) -> None:
        self._tokenizer, self._kept = tokenizer, kept
        self._in_use = tokenizer.held()  # until the answer has ended
        self._ids: list[int] = []
        self._given = 0
        self._before = ""
        self.reasoning_tokens = 0

    def follow(self, ids: Sequence[int]) -> None:
        """Before any token: the answer goes on behind these, so that its first word may begin with a space."""
        for count in range(1, _LAST_BYTES + 2):  # the last one may be a byte of a character
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
        """The rest, when no more tokens come; bytes that never became a character are shown as U+FFFD."""
        return self._rest()

    def take_reasoning(self) -> str:
        """What was thought since the last time, and is no part of the text."""
        return ""

    def _rest(self) -> str:
        return self._give(self._tokenizer.decode(self._ids))

    def _sure(self, broken: str) -> str:
        """What is certain of a text whose end is broken: nothing, unless that goes on and on.

        Then it never becomes a character, and each token would have all before it decoded again.
        """
        held = len(self._ids) - self._given
        if held >= _MAX_BROKEN_TOKENS:
            return self._give(broken)
        for waiting in range(1, _LAST_BYTES + 1) if held >= _BROKEN_TOKENS else ():
            sure = self._tokenizer.decode(self._ids[:-waiting])
            if sure + self._tokenizer.decode(self._ids[-waiting:]) == broken:  # no character is cut there
                return self._give(sure, waiting)
        return ""

    def _give(self, text: str, waiting: int = 0) -> str:
        """Give out the text of all tokens but the last ones, which wait."""
        delta = text[len(self._before) :]
        del self._ids[: self._given]
        self._given = len(self._ids) - waiting
        self._before = self._tokenizer.decode(self._ids[: self._given])
        return delta


def special_tokens(path: str | Path) -> dict[str, str]:
    """Named special tokens of a folder (bos_token, eos_token, ...) as text. Raises CheckpointError."""
    folder = Path(path)
    found: dict[str, str] = {}
    for file in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        for key, value in read_object_if_present(folder / file).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A decoder's parts, whether it is one or a sequence of them."""
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _parts(part)
    else:
        yield decoder


def _refuse_others(error: BaseException) -> None:
    """Raise what is no failure of the library: plain Exception, or a panic of Rust, whose type cannot be imported."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


_KNOWN: weakref.WeakValueDictionary[bytes, Tokenizer] = weakref.WeakValueDictionary()  # by content
_LAST: list[tuple[bytes, Tokenizer]] = []  # what was read last, for the next folder mostly has the same


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer that may be read."""
    return (folder / TOKENIZER).exists() or (folder / VOCABULARY).exists()


def _of(data: bytes, keeps: bool = False) -> Tokenizer:
    """`keeps`: there is no such file, from which it could be read again."""
    for before, found in _LAST:
        if before == data:
            return found
    content = digest(data)
    found = _KNOWN.get(content) or Tokenizer(Vocabulary(read_tokenizer(data, content), keeps))
    _KNOWN[content] = found
    _LAST[:] = [(data, found)]
    return found
