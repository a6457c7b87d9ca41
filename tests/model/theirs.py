"""What transformers says about a saved tiny model: logits of a prompt and greedy tokens.

The truth for a rounded model is its rounded weights in float32 arithmetic; a type's own error is measured against that.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tests.model import tiny
from tests.model.runner import Stepper

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


def runs_as(model, ours, make_backend):
    """That our model gives the logits of theirs: on the reference, and on kernels that round activations to 16 bits."""
    prompt = prompt_of(257)
    with torch.no_grad():
        wanted = model(torch.tensor([prompt])).logits[0].numpy()
    for backend, bound in (("reference", 1e-4), ("cpu", 5e-4)):
        stepper = Stepper(make_backend(backend, ours))
        assert relative_error(stepper.feed((stepper.sequence(), prompt)), wanted) <= bound


def ask(folder, dtype):
    """Everything that a comparison needs, for a folder saved in `dtype`."""
    model = tiny.load(folder, "fp32")
    prompt = prompt_of(model.config.get_text_config().vocab_size)
    truth = _logits(model, prompt)
    own = truth if dtype == "fp32" else _logits(tiny.load(folder, dtype), prompt)
    return Theirs(folder, dtype, prompt, truth, relative_error(own, truth), typical_error(own, truth))


def agreeing(found, wanted):
    """How many tokens agree from the start."""
    same = [ours == others for ours, others in zip(found, wanted, strict=True)]
    return same.index(False) if False in same else len(same)


@torch.no_grad()
def _logits(model, prompt):
    return model(torch.tensor([prompt])).logits[0].float().numpy()


@torch.no_grad()
def _greedy(model, prompt):
    inputs = torch.tensor([prompt])
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": GREEDY_TOKENS}
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), **settings)
    return output[0, len(prompt) :].tolist()
