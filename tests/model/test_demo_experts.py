"""The demo's experts, as shipped: they open, share one program, and give the numbers and texts of transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.model import tiny
from tests.model.runner import prompt_logits
from tests.model.theirs import relative_error
from transformers import AutoTokenizer

import coterie
from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.models.model import open_model

DEMO = Path(coterie.__file__).parent / "composition/presets/demo/experts"
EXPERTS = sorted(path.parent for path in DEMO.glob("*/config.json"))
MESSAGES = [{"role": "user", "content": "What is 47 plus 85? \u00d7\u2013"}]


def test_all_experts_open_and_share_one_program():
    models = [open_model(folder) for folder in EXPERTS]
    assert len({model.key for model in models}) == 1
    assert all(model.end_ids and model.max_context >= 256 for model in models)


@pytest.mark.parametrize("folder", EXPERTS[:2], ids=lambda folder: folder.name)
def test_an_expert_is_the_one_that_transformers_loads(folder, make_backend):
    theirs = AutoTokenizer.from_pretrained(folder)
    prompt = ChatTemplate.from_folder(folder).render(MESSAGES)
    assert prompt == theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = Tokenizer.from_folder(folder).encode(prompt, add_special_tokens=False)
    assert ids == theirs(prompt, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        truth, rounded = (tiny.load(folder, d)(torch.tensor([ids])).logits[0].float().numpy() for d in ("fp32", "bf16"))
    logits = prompt_logits(make_backend("cpu", open_model(folder)), ids)
    assert relative_error(logits, truth) <= relative_error(rounded, truth)
    assert np.array_equal(logits[-1:].argmax(-1), truth[-1:].argmax(-1))
