"""Long texts: bounds on their number of tokens without tokenizing all of them.

    text  | words .................... | margin | never looked at ...
          words that end before the margin are words of the whole text too, and so have the same tokens

Tokenizing a megabyte takes half a second of CPU time and up to 400 MB. But callers have a limit on the number of
tokens, and a longer text is refused or truncated anyway.
Knows nothing about what the limits are for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unicodedata import is_normalized

import tokenizers

LETTERS = 16  # characters read per token wanted; most texts have about four per token
_KEEPING = ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split")  # keep all characters, unless "Removed"


def _symbols() -> dict[str, int]:
    """Byte-level vocabularies' alphabet, character -> byte: printable bytes as themselves, others from U+0100 on.

    Source: GPT-2's bytes_to_unicode (github.com/openai/gpt-2, src/encoder.py).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _symbols()


def has_more(library: tokenizers.Tokenizer, text: str, count: int) -> bool:
    """Whether a text surely has more than `count` tokens; False if only tokenizing all of it could tell."""
    if len(text) <= LETTERS * count:
        return False
    return cut(library, text, count) is not text or _least_tokens(library, text) > count


def cut(library: tokenizers.Tokenizer, text: str, count: int) -> str:
    """The text, or a prefix of a long one that contains its first `count` tokens and more, special tokens aside."""
    added = library.get_added_tokens_decoder().values()
    margin = 4 * max([len(token.content) for token in added], default=0) + 64  # tokens split at the cut; look-ahead
    size = LETTERS * count + 2 * margin
    if len(text) <= 2 * size:
        return text
    found = library.encode_batch([text[:size]], add_special_tokens=False)[0]
    words, ends = found.word_ids, [end for _, end in found.offsets]
    last = next((word for word, end in zip(words, ends, strict=True) if end > size - margin), None)
    sure = words.index(last) if last is not None else len(words)
    return text[:size] if sure > count else text


def _least_tokens(library: tokenizers.Tokenizer, text: str) -> int:
    """A lower bound on a text's tokens, from the longest token; 0 if a token may stand for any number of characters."""
    longest = max(map(len, library.get_vocab()), default=0)  # in bytes for byte-level vocabularies
    passed_over = _passed_over(library)
    if not longest or passed_over is None or not _stays(library, text):
        return 0
    return -(-(len(text) - sum([text.count(letter) for letter in passed_over])) // longest)


def _passed_over(library: tokenizers.Tokenizer) -> str | None:
    """The characters that produce no token; None if that is unknown or one token may cover any number of characters."""
    model, parts = library.model, list(_parts(library.pre_tokenizer))
    if not isinstance(model, tokenizers.models.BPE) or (model.unk_token is not None and not model.byte_fallback):
        return None
    if any(added.lstrip or added.rstrip for added in library.get_added_tokens_decoder().values()):
        return None
    if any(part["type"] not in _KEEPING or part.get("behavior") == "Removed" for part in parts):
        return None
    if model.byte_fallback:
        return "" if all(library.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256)) else None
    if all(part["type"] != "ByteLevel" for part in parts):
        return None
    lacks = {byte for symbol, byte in BYTE_OF.items() if library.token_to_id(symbol) is None}
    # A character beyond ASCII has at least one continuation byte, 128 to 191, and so at least one token.
    return None if lacks & {*range(128, 192)} else "".join([chr(byte) for byte in lacks if byte < 128])


def _stays(library: tokenizers.Tokenizer, text: str) -> bool:
    """Whether normalizing keeps at least as many characters."""
    for part in _parts(library.normalizer):
        if part["type"] == "NFC" and is_normalized("NFC", text):
            continue
        pattern = part.get("pattern", {}).get("String") if part["type"] == "Replace" else None
        if part["type"] != "Prepend" and (pattern is None or len(pattern) > len(part["content"])):
            return False
    return True


def _parts(of: Any) -> Iterator[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, which may be None, a single one or a nested sequence."""
    if of is None:
        return
    queue = [json.loads(of.__getstate__())]
    while queue:
        part = queue.pop(0)
        if part["type"] == "Sequence":
            queue[:0] = part.get("normalizers") or part.get("pretokenizers") or []
        else:
            yield part
