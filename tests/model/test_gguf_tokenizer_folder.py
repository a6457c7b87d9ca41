"""A folder's tokenizer from GGUF metadata: transformers reads it, and gives the same tokens, texts and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.pure.vocabularies import G, byte_level, sentencepiece, texts
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import generate_merges

from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.gguf_tokenizer import tokenizer_files
from coterie.checkpoint.gguf_vocabulary import NORMAL, UNUSED, Vocabulary, scored_merges
from coterie.checkpoint.tokenizer import Tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|end|>{{ m.role }}\n{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant\n{% endif %}"
)
NAMED = {"tokenizer.chat_template": TEMPLATE, "tokenizer.chat_template.tool_use": "{{ tools | tojson }}" + TEMPLATE}


@pytest.mark.parametrize(
    "metadata",
    [
        byte_level("llama-bpe", eos_token_id=2002) | {"tokenizer.chat_template": TEMPLATE},
        byte_level("qwen2", eos_token_id=2002) | NAMED,
        sentencepiece(True, ("<|end|>",)) | {"tokenizer.chat_template": TEMPLATE},
        sentencepiece(False, ("<|end|>", "\n\n", "  ")) | NAMED,
    ],
)
def test_transformers_reads_the_same(metadata: dict[str, Any], tmp_path: Path) -> None:
    for name, text in tokenizer_files(metadata).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in texts(60, 11):
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None
    messages = [{"role": "user", "content": "It's 12"}, {"role": "assistant", "content": "  a\n\nb"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for offered in ([], tools) if template.takes_tools else ([],):
        prompt = template.render(messages, tools=offered)
        rendered = theirs.apply_chat_template(
            messages, tools=offered or None, tokenize=False, add_generation_prompt=True
        )
        assert rendered == prompt


@pytest.mark.parametrize("step", [1, 7])
def test_scores_give_the_merges_that_transformers_makes_of_them(step: int) -> None:
    """Whether or not scores are equal."""
    metadata = sentencepiece(True, ())
    scores = [float(score // step) for score in metadata[f"{G}scores"]]
    vocabulary = Vocabulary.of(metadata)
    words = {token: i for token, i in vocabulary.ids.items() if vocabulary.types[i] in (NORMAL, UNUSED)}
    theirs = generate_merges(words, {token: scores[i] for token, i in words.items()})
    assert scored_merges({**metadata, f"{G}scores": scores}, vocabulary) == theirs
    assert len(theirs) > 1000
