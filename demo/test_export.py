"""An exported expert gives the same logits in transformers as the model that was trained, and the files agree.

Knows nothing about tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import export
from data import END, prompt_ids
from generate import complete
from model import Shape, TinyLlama


def _random_model() -> TinyLlama:
    torch.manual_seed(0)
    model = TinyLlama(Shape())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_logits_equal_those_of_transformers(tmp_path: Path) -> None:
    export.write(_random_model(), tmp_path)
    ours = export.read(tmp_path, Shape())
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 256, (3, 77))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_template_and_tokenizer_give_the_trained_prompt(tmp_path: Path) -> None:
    export.write(_random_model(), tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    question = "How much is 3 × 4 – “please”?  <br>"
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "earlier"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": question},
    ]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == prompt_ids(question)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == f"<|user|>{question}"
    assert tokenizer.decode(ids, skip_special_tokens=True) == question
    assert tokenizer.eos_token_id == END


def test_greedy_decoding_equals_transformers(tmp_path: Path) -> None:
    export.write(_random_model(), tmp_path)
    ours = complete(export.read(tmp_path, Shape()), ["What is 2 plus 2?", "hi"])
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for question, text in zip(("What is 2 plus 2?", "hi"), ours, strict=True):
        prompt = torch.tensor([prompt_ids(question)])
        output = theirs.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :]
        kept = [token for token in output.tolist() if token < 256]
        assert text.encode("utf-8", errors="replace")[:3] == bytes(kept).decode(errors="replace").encode()[:3]
