"""Answers in channels: only what is said in the final one, or in none, is text."""

import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers

from coterie.checkpoint.channels import MARKERS, FinalText
from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.tokenizer import Tokenizer

ENDS = ("<|end|>", "<|return|>")


@pytest.fixture(scope="module")
def tokenizer():
    """A token per byte, and the markers as special tokens."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = LibraryTokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([*MARKERS, *ENDS])
    return Tokenizer(library)


THOUGHT = "<|channel|>analysis<|message|>They say hé.<|end|><|start|>assistant"
SAID = {
    f"{THOUGHT}<|channel|>final<|message|>Hello, é!<|return|>": "Hello, é!",
    f"<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant{THOUGHT}<|channel|>final<|message|>So": "So",
    "<|channel|>final <|constrain|>json<|message|>{}": "{}",
    "<|channel|>finally<|message|>no": "",
    "Plain text, as a fine-tune may write it.": "Plain text, as a fine-tune may write it.",
    "<|message|>in no channel<|end|>": "in no channel",
    "one<|end|><|start|>assistant<|message|>two": "onetwo",
    THOUGHT: "",
    "<|channel|>final": "",
    "": "",
}


@pytest.mark.parametrize("written", SAID)
def test_the_final_channel_alone_is_text(written, tokenizer):
    reader = FinalText(tokenizer)
    pieces = [reader.push(token) for token in tokenizer.encode(written, add_special_tokens=False)]
    assert "".join([*pieces, reader.flush()]) == SAID[written]
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_template_shows_that_its_model_writes_channels():
    assert ChatTemplate("{{ '<|start|>assistant<|channel|>final<|message|>' }}", {}, "here").has_channels
    assert not ChatTemplate("{{ '<|start|>assistant<|message|>' }}", {}, "here").has_channels
