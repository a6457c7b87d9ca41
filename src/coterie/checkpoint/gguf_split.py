"""The patterns by which a byte-level BPE tokenizer splits text, for each pre-tokenizer name used in GGUF files.

Knows nothing about vocabularies. Sources: the tokenizer.json files that the models were published with; for the mapping
of names to models, llama.cpp's table of pre-tokenizers (github.com/ggml-org/llama.cpp, src/llama-vocab.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from coterie.core.errors import UnsupportedError

PRE = "tokenizer.ggml.pre"
_ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str, letters: str = r"\p{L}", others: str = r"[^\s\p{L}\p{N}]+[\r\n]*") -> str:
    """The pattern of most models since GPT-4: words with one sign before them, `digits`, and runs of `others`."""
    return rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{digits}| ?{others}|{_SPACES}"


def _cased_words(digits: str, ending: str = "") -> str:
    """GPT-4o's pattern: words also split between a small letter and a capital; `ending` matches contractions."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    sign, others = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
    return f"{sign}{upper}*{lower}+{ending}|{sign}{upper}+{lower}*{ending}|{digits}|{others}|{_SPACES}"


# Cased letters in the Unicode blocks that DeepSeek lists: not Georgian, nor mathematical ones.
_DEEPSEEK_CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C8A}\x{2D00}-\x{2D2D}\x{A790}-\x{A7FF}"
    r"\x{AB30}-\x{AB68}\x{10570}-\x{105BC}\x{10D50}-\x{10D85}\x{16E40}-\x{16ED3}\x{1D400}-\x{1D7CB}\x{1DF00}-\x{1DF2A}]]"
)
_DEEPSEEK_SIGNS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_EXAONE_MOE = (
    rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class Split:
    """A pre-tokenizer: each pattern splits the pieces that the ones before it produced.

    The gaps between a pattern's matches are pieces too.
    `composed`: normalise text to NFC first. `whole`: a piece that is itself a token is not assembled by merges.
    `begins`: add the begin-of-text token if the file does not say whether to.
    """

    patterns: tuple[str, ...]
    composed: bool = False
    whole: bool = False
    begins: bool = False

    def apply(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Configure a tokenizer to split text this way and to spell the pieces in bytes."""
        cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in self.patterns]
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, spell])
        if self.composed:
            tokenizer.normalizer = normalizers.NFC()


# llama.cpp's behaviour if a file says `default` or nothing: a guess, from before files named their pre-tokenizer.
_DEFAULT = Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_THREE_DIGITS = Split((_words(r"\p{N}{1,3}"),))
_DIGIT = Split((r"\p{N}", _GPT2))
_SPLITS: dict[str, Split] = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "mellum", "exaone4", "a.x-4.0", "trillion", "granite-docling"), Split((_GPT2,))),
    "roberta-bpe": Split((_GPT2,)),
    **dict.fromkeys(("olmo", "modern-bert"), Split((_GPT2,), composed=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGIT),
    "command-r": Split(_DIGIT.patterns, composed=True),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "midm-2.0", "lfm2"),
        Split(_THREE_DIGITS.patterns, whole=True, begins=True),
    ),
    "minicpm5": Split((r"\p{N}{1,3}", _words(r"\p{N}+")), whole=True),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _THREE_DIGITS),
    **dict.fromkeys(("glm4", "chatglm-bpe"), Split(_THREE_DIGITS.patterns, whole=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), Split((_words(r"\p{N}"),), composed=True)),
    "qwen35": Split((_words(r"\p{N}", r"\p{L}\p{M}", r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),), composed=True),
    "seed-coder": Split((_words(r"\p{N}{1}", others=r"[^\s\p{L}\p{N}\r\n]+"),)),
    "tekken": Split((_cased_words(r"\p{N}"),), whole=True, begins=True),
    **dict.fromkeys(("gpt-4o", "kanana2"), Split((_cased_words(r"\p{N}{1,3}", f"{_ANY_CASE}?"),))),
    "llama4": Split((_cased_words(r"\p{N}{1,3}", f"{_ANY_CASE}?"),), whole=True),
    "deepseek-llm": Split(
        ("[\r\n]", rf"\s?{_DEEPSEEK_CASED}+", _DEEPSEEK_SIGNS, r"\s+$", _HAN_AND_HANGUL, r"\p{N}"),
    ),
    "deepseek-coder": Split(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), Split((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK_V3))),
    "exaone-moe": Split((_EXAONE_MOE,)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2"), Split((_BAILING,))),
}
KNOWN_SPLITS = tuple(_SPLITS)


def split_of(name: str | None) -> Split:
    """The pre-tokenizer of this name; None, if the file has none, means `default`. Raises UnsupportedError."""
    split = _DEFAULT if name is None else _SPLITS.get(name)
    if split is None:
        known = ", ".join(sorted(KNOWN_SPLITS))
        fact = f"names the pre-tokenizer {name!r}, which is not one of those known: {known}"
        raise UnsupportedError(PRE, fact, "give the folder of the model's own tokenizer.json by --tokenizer FOLDER")
    return split
