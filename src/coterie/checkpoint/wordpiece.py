"""Builds the tokenizer of older BERT checkpoints, which have vocab.txt instead of tokenizer.json, as transformers does.

    vocab.txt               [PAD]                        one token per line, numbered from 0
    tokenizer_config.json   do_lower_case, strip_accents, tokenize_chinese_chars, and the special tokens

Knows nothing about models. Source: transformers' BertTokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import WordPiece as Decoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from coterie.checkpoint.files import read_text

VOCABULARY = "vocab.txt"
ADDED = "added_tokens.json"
_CLASSES = ("BertTokenizer", "BertTokenizerFast")
_MORE = ("never_split", "additional_special_tokens", "extra_special_tokens")
SPECIAL = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


def wordpiece(folder: Path, says: Mapping[str, Any], named: Mapping[str, str]) -> bytes | None:
    """The tokenizer.json equivalent to a folder's vocab.txt; None if there is none, or it uses unsupported settings.

    `says`: the contents of tokenizer_config.json; `named`: special tokens, by name. Raises CheckpointError.
    """
    plain = says.get("tokenizer_class", _CLASSES[0]) in _CLASSES and says.get("do_basic_tokenize", True) is True
    more = any(says.get(key) for key in _MORE) or (folder / ADDED).exists()
    if not plain or more or not (folder / VOCABULARY).exists():
        return None
    lines = read_text(folder / VOCABULARY).replace("\r\n", "\n").removesuffix("\n").split("\n")
    ids = {token: number for number, token in enumerate(lines)}
    special = {f"{name}_token": token for name, token in SPECIAL.items()} | dict(named)
    needed = {special[name] for name in ("unk_token", "cls_token", "sep_token")} | set(named.values())
    listed = says.get("added_tokens_decoder")
    added = {token.get("content") for token in listed.values()} if isinstance(listed, dict) else set()
    if not (added <= set(special.values()) and needed <= ids.keys()):
        return None
    accents = says["strip_accents"] if isinstance(says.get("strip_accents"), bool) else None
    flags = [says.get(key, usual) for key, usual in (("do_lower_case", True), ("tokenize_chinese_chars", True))]
    made = cut_in_pieces(ids, special["unk_token"], bool(flags[0]), bool(flags[1]), accents)
    made.add_special_tokens([token for token in special.values() if token in ids])
    begins, ends = special["cls_token"], special["sep_token"]
    made.post_processor = around({begins: ids[begins], ends: ids[ends]})
    return made.to_str().encode()


def cut_in_pieces(
    ids: Mapping[str, int], unknown: str, lowers: bool, chinese: bool = True, accents: bool | None = None
) -> tokenizers.Tokenizer:
    """A WordPiece tokenizer, in whose vocabulary the pieces after a word's first begin with ##.

    `chinese`: split Chinese characters apart; `accents`: strip accents; None: if texts are lowercased.
    """
    made = tokenizers.Tokenizer(WordPiece(dict(ids), unk_token=unknown))
    made.normalizer = BertNormalizer(True, chinese, accents, lowers)
    made.pre_tokenizer, made.decoder = BertPreTokenizer(), Decoder(prefix="##")
    return made


def around(marks: Mapping[str, int], twice: bool = False) -> TemplateProcessing:
    """The special tokens around a text and around a pair: the first mark before all, the last one after each text.

    `twice`: the last one comes twice between the two, and both texts have token type 0 (RoBERTa).
    """
    (begins, *_), (*_, ends) = marks, marks
    second = f"{ends}:0 $B:0 {ends}:0" if twice else f"$B:1 {ends}:1"
    return TemplateProcessing(
        single=f"{begins}:0 $A:0 {ends}:0",
        pair=f"{begins}:0 $A:0 {ends}:0 {second}",
        special_tokens=list(marks.items()),
    )
