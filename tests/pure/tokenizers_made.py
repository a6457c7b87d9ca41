"""Byte-level tokenizers: of single bytes, or with merges of a text. Knows nothing about what is read with them."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def of_bytes(special: Sequence[str] = (), plain: Sequence[str] = ()) -> Tokenizer:
    """A token for each byte, in the order of their characters, then special tokens, then others that are text."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    made.add_tokens(list(plain))
    return made


def with_merges(text: str, size: int, special: Sequence[str] = ()) -> Tokenizer:
    """Special tokens, then all bytes, then merges of the text, `size` tokens in all."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    made.train_from_iterator([text] * 9, trainer)
    return made
