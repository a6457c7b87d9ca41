"""Reads and checks the vocabulary in a GGUF file's metadata: tokens, their types, named special tokens, merges.

Knows nothing about how text is split or merged. Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md,
"Tokenizer").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.checkpoint.tokenizer import BYTE_SPELLED
from coterie.checkpoint.wordpiece import SPECIAL
from coterie.core.errors import CheckpointError

TOKENS, TYPES, MERGES, SCORES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges", "scores"))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens
_KEYS = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"}
_KEYS |= {"cls": "cls", "sep": "seperator", "mask": "mask"}  # of encoders
_ADDED = (UNKNOWN, CONTROL, USER_DEFINED)
# Files name the end-of-text token, but seldom the one that ends a turn. Published chat templates end turns with these.
_ENDS = (
    *("<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "[|endofturn|]"),
    *("<|return|>", "<|call|>"),  # gpt-oss's: 200002 and 200012 of eos_token_id in its generation_config.json
    *("<turn|>", "<|tool_response>"),  # Gemma 4's; the second follows calls
    *("<|endoftext|>", "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
_GOES_ON = {"<|end|>": "<|return|>"}  # if the second is a token, the first does not end an answer
SPACE = "\u2581"  # how SentencePiece writes a space
_BRACKETED = re.compile(r"\[.+\]")  # such as [unused7], which older files keep unchanged
_DAMAGED = "download the file again"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, each with a type; `named`: the ids of special tokens, by the names in _KEYS."""

    tokens: Sequence[str]
    types: Sequence[int]
    named: Mapping[str, int]

    @staticmethod
    def of(metadata: Mapping[str, Any]) -> Vocabulary:
        """Read and check. Raises CheckpointError."""
        tokens = _listed(metadata, TOKENS, str)
        if not tokens:
            raise CheckpointError(TOKENS, "holds no tokens", _DAMAGED)
        if len(set(tokens)) != len([token for token in tokens if token]) + ("" in tokens):
            first: dict[str, int] = {}
            twice = next(i for i, token in enumerate(tokens) if token and first.setdefault(token, i) != i)
            fact = f"holds {tokens[twice]!r} as {first[tokens[twice]]} and again as {twice}"
            raise CheckpointError(TOKENS, fact, _DAMAGED)
        ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _KEYS.items()}
        # Some files write -1, as an unsigned number, for a token that is missing.
        named = {name: i for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens) and tokens[i]}
        types = _listed(metadata, TYPES, int) or _guessed(tokens, named)
        if len(types) != len(tokens):
            raise CheckpointError(TYPES, f"holds {len(types)} types for {len(tokens)} tokens", _DAMAGED)
        if "unk" not in named and UNKNOWN in types:
            named["unk"] = types.index(UNKNOWN)
        return Vocabulary(tokens, types, named)

    @property
    def ids(self) -> dict[str, int]:
        """Token -> id; ids with an empty text are left out."""
        return {token: i for i, token in enumerate(self.tokens) if token}

    def of_word_piece(self) -> Vocabulary:
        """The vocabulary in WordPiece's spelling: GGUF marks tokens that begin a word, WordPiece (##) the others."""
        ids = self.ids
        usual = {name: ids[token] for name, token in SPECIAL.items() if token in ids} | dict(self.named)
        named = set(usual.values())
        types = [CONTROL if i in named else kind for i, kind in enumerate(self.types)]
        tokens = [
            token if kind == CONTROL or _BRACKETED.fullmatch(token) else _of_word(token)
            for token, kind in zip(self.tokens, types, strict=True)
        ]
        return Vocabulary(tokens, types, usual)

    @property
    def added(self) -> dict[int, bool]:
        """Added tokens, which are matched in a text before it is split: id -> whether it is special (not shown)."""
        named = set(self.named.values())
        found = [i for i, kind in enumerate(self.types) if kind in _ADDED and self.tokens[i]]
        return {i: self.types[i] != USER_DEFINED or i in named for i in found}

    @property
    def ends(self) -> list[int]:
        """Ids of the tokens that end an answer, the end-of-text token first."""
        ids, added = self.ids, self.added
        known = [end for end in _ENDS if _GOES_ON.get(end) not in ids]
        found = [self.named[name] for name in ("eos", "eot", "eom") if name in self.named]
        return list(dict.fromkeys(found + [ids[end] for end in known if ids.get(end) in added]))

    def text(self, name: str) -> str | None:
        """The text of a named special token, or None."""
        return self.tokens[self.named[name]] if name in self.named else None


def _of_word(token: str) -> str:
    return token[1:] if token.startswith(SPACE) else f"##{token}" if token else token


def listed_merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The listed merges, highest priority first. Raises CheckpointError."""
    pairs = []
    for line in _listed(metadata, MERGES, str):
        cut = line.find(" ", 1)  # the left part has at least one character, which may itself be a space
        if cut < 0 or cut + 1 == len(line):
            raise CheckpointError(MERGES, f"holds {line!r}, which is not two parts with a space between", _DAMAGED)
        pairs.append((line[:cut], line[cut + 1 :]))
    return pairs


def scored_merges(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Merges that reproduce SentencePiece's BPE, in order of priority. Raises CheckpointError.

    SentencePiece merges the adjacent pair whose union has the best score; so every two tokens whose concatenation is a
    token form a merge, with that token's score. Ties are ordered as in transformers' conversion: longer parts first.
    """
    scores = _scores(metadata, vocabulary)
    plain = {
        token: i
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (NORMAL, USER_DEFINED, UNUSED)  # user-defined: Gemma's runs of spaces, reached only by merges
    }
    pairs: list[tuple[str, str]] = []
    for token in plain:
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        found = [(left, right) for left, right in cuts if left in plain and right in plain]
        pairs += sorted(found, key=lambda pair: (plain[pair[0]], plain[pair[1]]))
    pairs.sort(key=lambda pair: (scores[plain[pair[0] + pair[1]]], len(pair[0]), len(pair[1])), reverse=True)
    return pairs


def unigram(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[tuple[str, float]]:
    """Each token with its log probability. Raises CheckpointError.

    Scores are clamped to the lowest of the used tokens: unused ids have far lower ones, and the library would derive
    the score of unknown text from the minimum.
    """
    scores = _scores(metadata, vocabulary)
    least = min((score for score, kind in zip(scores, vocabulary.types, strict=True) if kind != UNUSED), default=0.0)
    return [(token, max(score, least)) for token, score in zip(vocabulary.tokens, scores, strict=True)]


def _scores(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[float]:
    scores = _listed(metadata, SCORES, float, int)
    if len(scores) != len(vocabulary.tokens):
        fact = f"holds {len(scores)} scores for {len(vocabulary.tokens)} tokens"
        raise CheckpointError(SCORES, fact, _DAMAGED)
    return scores


def _guessed(tokens: Sequence[str], named: Mapping[str, int]) -> list[int]:
    """Token types for a file without them: named special tokens are control (or unknown), then bytes, then words."""
    types = [BYTE if BYTE_SPELLED.fullmatch(token) else NORMAL for token in tokens]
    for name, i in named.items():
        types[i] = UNKNOWN if name == "unk" else types[i] if name == "pad" else CONTROL
    return types


def _listed(metadata: Mapping[str, Any], key: str, *kinds: type) -> list[Any]:
    found = metadata.get(key, [])
    if not isinstance(found, list | tuple) or not all(isinstance(value, kinds) for value in found):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise CheckpointError(key, f"is not a list of {wanted}", _DAMAGED)
    return list(found)
