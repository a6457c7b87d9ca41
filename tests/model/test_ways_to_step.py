"""One answer, however it is stepped: whole, in chunks, token by token, in a batch, fused, beside other experts."""

import numpy as np
import pytest
from tests.model.runner import BACKENDS, NUM_BLOCKS, Stepper, chunks
from tests.model.theirs import prompt_of, relative_error

from coterie.models.model import open_model

SAME = 1e-5  # float32, relative to the largest logit: only the order of additions differs
ROWS = ["llama", "llama-biases", "mistral", "qwen2-types", "qwen3", "llama-head80"]


@pytest.fixture(params=[(backend, row) for backend in BACKENDS for row in ROWS], ids="-".join)
def case(request, folder_of, make_backend):
    """A backend with a model, its prompt, and the logits of the prompt fed whole."""
    backend, row = request.param
    stepper = Stepper(make_backend(backend, open_model(folder_of(row))))
    prompt = prompt_of(stepper.backend.model.config.vocab_size)
    return stepper, prompt, stepper.feed((stepper.sequence(), prompt))


@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_chunks_equal_the_whole(case, size):
    stepper, prompt, whole = case
    sequence = stepper.sequence()
    pieces = [stepper.feed((sequence, piece)) for piece in chunks(prompt, size)]
    assert relative_error(np.concatenate(pieces), whole) <= SAME


def test_a_batch_equals_each_alone(case):
    stepper, prompt, whole = case
    a, b, c = (stepper.sequence() for _ in range(3))
    stepper.feed((b, prompt[:9]))
    stepper.feed((c, prompt[:1]), (b, prompt[9:10]))
    logits = stepper.feed((a, prompt), (b, prompt[10:11]), (c, prompt[1:20]))
    wanted = np.concatenate([whole, whole[10:11], whole[1:20]])
    assert relative_error(logits, wanted) <= SAME


def test_rows_that_are_not_sampled_change_nothing(case):
    stepper, prompt, whole = case
    rows = stepper.rows((stepper.sequence(), prompt), (stepper.sequence(), prompt[:5]), sample="last")
    assert relative_error(stepper.backend.logits(rows), whole[[len(prompt) - 1, 4]]) <= SAME


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_experts_interleaved_equal_each_alone(backend, folder_of, make_backend):
    """Three experts share one KV slab: two of one architecture and one of another, with other pages."""
    models = [open_model(folder_of("llama", seed=seed)) for seed in (0, 1)] + [open_model(folder_of("qwen3"))]
    assert models[0].key == models[1].key != models[2].key
    prompts = [prompt_of(257, seed) for seed in range(3)]
    steppers = [Stepper(make_backend(backend, model)) for model in models]
    alone = [s.feed((s.sequence(), prompt)) for s, prompt in zip(steppers, prompts, strict=True)]
    shared = make_backend(backend, models[0])
    room = (NUM_BLOCKS - 1) // 3
    steppers = [
        Stepper(shared.beside(model), first_block=1 + i * room, num_blocks=room) for i, model in enumerate(models)
    ]
    sequences = [stepper.sequence() for stepper in steppers]
    found = [[], [], []]
    for turn in range(0, len(prompts[0]), 5):
        for i, stepper in enumerate(steppers):
            found[i].append(stepper.feed((sequences[i], prompts[i][turn : turn + 5])))
    for pieces, wanted in zip(found, alone, strict=True):
        assert relative_error(np.concatenate(pieces), wanted) <= SAME
