"""What transformers says about a saved tiny model: logits of a prompt and greedy tokens.

The truth for a rounded model is its rounded weights in float32 arithmetic; a type's own error is measured against that.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tests.model import tiny
from tests.model.runner import prompt_logits

from coterie.core.packed import SHARED
from coterie.graph.rounding import as_a_cpu_rounds
from coterie.kernels.cpu import rounds_attention

# Of the largest logit: what is lost as activations that meet 4 bits have 12 of their 16 (core.packed.rounded). Beside a
# reference that rounds as well, a number near the middle between two goes either way, which is a step too.
TWELVE_BITS = 4e-3
SIXTEEN_BITS = 5e-4
PROMPT_TOKENS, GREEDY_FROM, GREEDY_TOKENS = 40, 12, 64


@dataclass(frozen=True)
class Theirs:
    """`truth` [T, V] in float32 arithmetic, `own_error` and `own_typical_error` of the type itself relative to it.

    Tokens are drawn when they are asked for, which takes longer than all the rest.
    """

    folder: Path
    dtype: str
    prompt: list[int]
    truth: np.ndarray
    own_error: float
    own_typical_error: float

    @cached_property
    def greedy(self):
        """Token ids in float32 arithmetic."""
        return _greedy(tiny.load(self.folder, "fp32"), self.prompt[:GREEDY_FROM])

    @cached_property
    def own_greedy(self):
        """Token ids of the type itself."""
        return _greedy(tiny.load(self.folder, self.dtype), self.prompt[:GREEDY_FROM])


def prompt_of(vocab_size, seed=0):
    """A fixed random prompt."""
    return [int(t) for t in np.random.default_rng(seed).integers(0, vocab_size, PROMPT_TOKENS)]


def relative_error(found, truth):
    """The largest difference relative to the largest logit."""
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def typical_error(found, truth):
    """As relative_error, but of the token in the middle: half of them are nearer to the truth."""
    return float(np.median(np.abs(found - truth).max(axis=-1)) / np.abs(truth).max())


def most_lost(model, other=SIXTEEN_BITS):
    """Of the largest logit, by rounding what meets packed weights; `other` where none of these has 4 bits."""
    return TWELVE_BITS if any(value.dtype in SHARED for value in model.graph.values.values()) else other


def as_met(model):
    """The model whose products with packed weights round in the reference as they do on a CPU."""
    return replace(model, graph=as_a_cpu_rounds(model.graph, rounds_attention()))


def runs_as(model, ours, make_backend):
    """That our model gives the logits of theirs on the reference; on kernels, what it gives where it rounds as they."""
    prompt = prompt_of(257)
    logits = {}
    for name, backend, run in (
        ("exact", "reference", ours),
        ("rounded", "reference", as_met(ours)),
        ("cpu", "cpu", ours),
    ):
        logits[name] = prompt_logits(make_backend(backend, run), prompt)
    with torch.no_grad():
        wanted = model(torch.tensor([prompt])).logits[0].numpy()
    assert relative_error(logits["exact"], wanted) <= 1e-4
    assert relative_error(logits["cpu"], logits["rounded"]) <= most_lost(ours)
    assert relative_error(logits["rounded"], wanted) <= most_lost(ours)


def ask(folder, dtype):
    """Everything that a comparison needs, for a folder saved in `dtype`."""
    model = tiny.load(folder, "fp32")
    prompt = prompt_of(model.config.get_text_config().vocab_size)
    truth = torch_logits(model, prompt)
    own = truth if dtype == "fp32" else torch_logits(tiny.load(folder, dtype), prompt)
    return Theirs(folder, dtype, prompt, truth, relative_error(own, truth), typical_error(own, truth))


def agreeing(found, wanted):
    """How many tokens agree from the start."""
    same = [ours == others for ours, others in zip(found, wanted, strict=True)]
    return same.index(False) if False in same else len(same)


@torch.no_grad()
def torch_logits(model, prompt):
    return model(torch.tensor([prompt])).logits[0].float().numpy()


@torch.no_grad()
def _greedy(model, prompt):
    inputs = torch.tensor([prompt])
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": GREEDY_TOKENS}
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), **settings)
    return output[0, len(prompt) :].tolist()
