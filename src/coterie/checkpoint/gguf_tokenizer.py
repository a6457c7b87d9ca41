"""Converts the tokenizer in a GGUF file's metadata to the files of a Hugging Face folder.

Knows nothing about GGUF's bytes. Where llama.cpp differs from the tokenizer.json that a model was published with (NFC,
capitals beyond ASCII), the published behaviour is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from coterie.checkpoint.chat import DEFAULT
from coterie.checkpoint.generation import GENERATION
from coterie.checkpoint.gguf_split import PRE, split_of
from coterie.checkpoint.gguf_vocabulary import (
    MERGES,
    NORMAL,
    SPACE,
    Vocabulary,
    listed_merges,
    scored_merges,
    unigram,
)
from coterie.checkpoint.tokenizer import TOKENIZER, TOKENIZER_CONFIG
from coterie.checkpoint.wordpiece import around, cut_in_pieces
from coterie.core.errors import CheckpointError, UnsupportedError

MODEL = "tokenizer.ggml.model"
TEMPLATE = "tokenizer.chat_template"
_WHOLE = "tokenizer.huggingface.json"
_KINDS = {
    "rwkv": "RWKV's trie",
    "plamo2": "PLaMo's Aho-Corasick",
    "none": "no tokenizer",
    "no_vocab": "no tokenizer",
}
_PIECES, _UNIGRAM = "bert", "t5"
_OF_CHARACTERS = ("llama", "gemma4")  # BPE over characters: SentencePiece's (from scores), Gemma 4's (listed merges)
_REMEDY = "give the folder of the model's own tokenizer.json by --tokenizer FOLDER"
# Phi-3's added tokens swallow the white space after them, except these. GGUF does not record that, so the model is
# recognised by a token that only Phi-3 has.
_PHI3, _PHI3_KEEPS = "<|placeholder1|>", ("<unk>", "<s>", "<|endoftext|>")
# Nor does it record that Mistral's models with these tokens prepend a space only to a whole text, not after a token.
_MISTRAL_V3 = ("[INST]", "[/INST]")


def tokenizer_files(metadata: Mapping[str, Any], encodes: bool = False) -> dict[str, str]:
    """The contents of tokenizer.json, tokenizer_config.json and generation_config.json (the tokens that end an answer).

    `metadata`: a GGUF file's keys that begin with `tokenizer.`, as plain Python values. `encodes`: the model is an
    encoder: texts are put between two special tokens, and there are no answers to end.
    Raises UnsupportedError for an unknown kind of tokenizer or pre-tokenizer, CheckpointError for damaged metadata.
    """
    kind = metadata.get(MODEL)
    if kind not in ("gpt2", _PIECES, _UNIGRAM, *_OF_CHARACTERS):
        fact = f"is {kind!r}" + (f" ({_KINDS[kind]})" if kind in _KINDS else "")
        known = "gpt2 (byte-level BPE), llama (SentencePiece), gemma4, bert (WordPiece) and t5 (Unigram)"
        raise UnsupportedError(MODEL, f"{fact}, where {known} are read", _REMEDY)
    vocabulary = Vocabulary.of(metadata)
    vocabulary = vocabulary.of_word_piece() if kind == _PIECES else vocabulary
    if encodes:
        made = _made(kind, metadata, vocabulary)
        marks = _marks(vocabulary)
        made.post_processor = around(marks, twice="<s>" in marks)
        whole = _published(metadata) or str(made.to_str())
        return {TOKENIZER: whole, TOKENIZER_CONFIG: _text(_config(metadata, vocabulary, {}))}
    begins = kind in _OF_CHARACTERS or split_of(metadata.get(PRE)).begins
    adds = {
        "bos": bool(metadata.get("tokenizer.ggml.add_bos_token", begins)) and "bos" in vocabulary.named,
        "eos": bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and "eos" in vocabulary.named,
    }
    files = {TOKENIZER: _published(metadata) or _tokenizer(kind, metadata, vocabulary, adds)}
    files[TOKENIZER_CONFIG] = _text(_config(metadata, vocabulary, adds))
    if vocabulary.ends:
        named = {f"{name}_token_id": vocabulary.named[name] for name in ("bos", "pad") if name in vocabulary.named}
        files[GENERATION] = _text({**named, "eos_token_id": vocabulary.ends})
    return files


def _published(metadata: Mapping[str, Any]) -> str | None:
    """The tokenizer.json embedded in a file, or None if there is none or it is broken: some writers truncate it."""
    text = metadata.get(_WHOLE)
    if not isinstance(text, str):
        return None
    try:
        tokenizers.Tokenizer.from_str(text)
    except Exception:  # the library raises plain Exception for every kind of bad text
        return None
    return text


def _made(kind: str, metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The tokenizer, without the special tokens around a text."""
    make = {"gpt2": _byte_level, _PIECES: _word_piece, _UNIGRAM: _unigram}.get(kind, _sentencepiece)
    try:
        made = make(metadata, vocabulary)
    except (CheckpointError, UnsupportedError):
        raise
    except Exception as error:  # the library's, for example for a merge whose parts are not tokens
        raise CheckpointError(MERGES, f"does not fit the tokens: {error}", _REMEDY) from None
    _add_tokens(made, vocabulary)
    return made


def _marks(vocabulary: Vocabulary) -> dict[str, int]:
    """The tokens before and after an encoder's text, with their ids. Raises CheckpointError."""
    both = [next((n for n in names if n in vocabulary.named), "") for names in (("cls", "bos"), ("sep", "eos"))]
    if not all(both):
        raise CheckpointError(MODEL, "has no tokens that begin and end a text", _REMEDY)
    return {vocabulary.tokens[i]: i for i in (vocabulary.named[name] for name in both)}


def _tokenizer(kind: str, metadata: Mapping[str, Any], vocabulary: Vocabulary, adds: Mapping[str, bool]) -> str:
    made = _made(kind, metadata, vocabulary)
    before, after = ([vocabulary.tokens[vocabulary.named[name]]] if adds[name] else [] for name in ("bos", "eos"))
    if before or after:
        parts = [(text, vocabulary.ids[text]) for text in dict.fromkeys([*before, *after])]
        made.post_processor = processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=parts)
    return str(made.to_str())


def _byte_level(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    split = split_of(metadata.get(PRE))
    merges = listed_merges(metadata)
    if not merges:
        raise CheckpointError(MERGES, "holds no merges, without which there are but bytes", "download the file again")
    made = tokenizers.Tokenizer(models.BPE(vocabulary.ids, merges, ignore_merges=split.whole))
    split.apply(made)
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    merges = listed_merges(metadata)
    if not merges and metadata[MODEL] != "llama":
        raise CheckpointError(MERGES, "holds no merges, and scores do not say them", "download the file again")
    merges = merges or scored_merges(metadata, vocabulary)
    unknown = {} if vocabulary.text("unk") is None else {"unk_token": vocabulary.text("unk")}
    model = models.BPE(vocabulary.ids, merges, fuse_unk=True, byte_fallback=True, **unknown)
    made = tokenizers.Tokenizer(model)
    spaces, parts = normalizers.Replace(" ", SPACE), [decoders.Replace(SPACE, " "), decoders.ByteFallback()]
    if not metadata.get("tokenizer.ggml.add_space_prefix", True):
        made.normalizer = spaces
        made.decoder = decoders.Sequence([*parts, decoders.Fuse()])
        return made
    if all(vocabulary.ids.get(token) in vocabulary.added for token in _MISTRAL_V3):
        made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
    made.decoder = decoders.Sequence([*parts, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made


def _word_piece(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """WordPiece. Older files do not say whether texts are lowercased: a vocabulary without a capital implies it."""
    words = [token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == NORMAL]
    has_none = not any(any(map(str.isupper, token)) for token in words)
    lowers = metadata.get("tokenizer.ggml.normalizer.lowercase", has_none)
    accents = metadata.get("tokenizer.ggml.normalizer.strip_accents")
    unknown = vocabulary.text("unk") or "[UNK]"
    return cut_in_pieces(vocabulary.ids, unknown, bool(lowers), accents=accents if accents is None else bool(accents))


def _unigram(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """SentencePiece's Unigram, as in XLM-RoBERTa: runs of white space count as one, whatever the file says."""
    pieces = unigram(metadata, vocabulary)
    made = tokenizers.Tokenizer(models.Unigram(pieces, vocabulary.named.get("unk"), False))
    if table := metadata.get("tokenizer.ggml.precompiled_charsmap"):
        made.normalizer = normalizers.Precompiled(bytes(one & 255 for one in table))
    prepends = "always" if metadata.get("tokenizer.ggml.add_space_prefix", True) else "never"
    spaces = pre_tokenizers.Metaspace(SPACE, prepend_scheme=prepends)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    made.decoder = decoders.Metaspace(SPACE, prepend_scheme=prepends)
    return made


def _add_tokens(made: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
    """Register the added tokens, which are matched in a text before it is split; they keep the vocabulary's ids."""
    is_phi3 = _PHI3 in vocabulary.tokens
    for special in (True, False):
        texts = [vocabulary.tokens[i] for i, is_special in vocabulary.added.items() if is_special == special]
        added = [
            AddedToken(text, rstrip=is_phi3 and text not in _PHI3_KEEPS, normalized=False, special=special)
            for text in texts
        ]
        (made.add_special_tokens if special else made.add_tokens)(added)


def _config(metadata: Mapping[str, Any], vocabulary: Vocabulary, adds: Mapping[str, bool]) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    texts = {f"{name}_token": vocabulary.text(name) for name in ("bos", "eos", "unk", "pad", "cls", "sep", "mask")}
    config |= {name: text for name, text in texts.items() if text is not None}
    config |= {f"add_{name}_token": added for name, added in adds.items()}
    named = {key.removeprefix(f"{TEMPLATE}."): text for key, text in metadata.items() if key.startswith(f"{TEMPLATE}.")}
    default = metadata.get(TEMPLATE)
    if named:
        templates = ({} if default is None else {DEFAULT: default}) | named
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    elif default is not None:
        config["chat_template"] = default
    return config


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
