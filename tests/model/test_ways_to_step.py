"""One answer, however it is stepped: whole, in chunks, token by token, in a batch, fused, beside other experts."""

import numpy as np
import pytest
from tests.model import tiny
from tests.model.runner import BACKENDS, NUM_BLOCKS, Stepper, chunks, prompt_logits
from tests.model.theirs import GREEDY_FROM, GREEDY_TOKENS, prompt_of, relative_error

from coterie.kernels.cpu import ISAS
from coterie.models.model import open_model

SAME = 1e-5  # float32, relative to the largest logit: only the order of additions differs
ROWS = [
    *("llama", "llama-biases", "mistral", "qwen2-types", "qwen3", "llama-head80"),
    *("olmo2", "phi3-partial", "smollm3-window", "granite"),
    *("gemma", "gemma2", "gemma3"),
]


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


DEVICE_WAYS = {
    "unfused, host": {"rule_set": "none", "orchestration": "host"},
    "unfused, device": {"rule_set": "none", "orchestration": "device"},
    "fused, device": {"orchestration": "device"},
    "one thread": {"threads": 1},
    "three threads": {"threads": 3},
    **{f"isa {isa}": {"isa": isa} for isa in ISAS},
}


UNFUSED = ["llama-biases", "mistral", "qwen3", "olmo2-bias", "gemma2", "gemma3"]
UNFUSED += ["phi3-partial", "smollm3-window", "granite", "exaone4"]


@pytest.mark.parametrize("way", DEVICE_WAYS)
@pytest.mark.parametrize("row", UNFUSED)
def test_fused_equals_unfused_on_any_team(way, row, folder_of, theirs_of, make_backend):
    """Logits of a prompt and of later tokens, and 64 greedy tokens, whatever the rule set, threads or instructions."""
    theirs = theirs_of(row)
    stepper = Stepper(make_backend("cpu", open_model(folder_of(row)), **DEVICE_WAYS[way]))
    sequence = stepper.sequence()
    pieces = [
        stepper.feed((sequence, piece)) for piece in (theirs.prompt[:30], theirs.prompt[30:31], theirs.prompt[31:])
    ]
    assert relative_error(np.concatenate(pieces), theirs.truth) <= SAME
    assert stepper.greedy(theirs.prompt[:GREEDY_FROM], GREEDY_TOKENS) == theirs.greedy


def test_results_do_not_depend_on_the_number_of_threads(folder_of, make_backend):
    model = open_model(folder_of("llama-head80", dtype="bf16"))
    prompt = prompt_of(257)
    found = [prompt_logits(make_backend("cpu", model, threads=threads), prompt) for threads in (1, 2, 5)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("orchestration", ["host", "device"])
@pytest.mark.parametrize("dtype", tiny.DTYPES)
def test_many_steps_at_once_equal_single_steps(dtype, orchestration, folder_of, make_backend):
    stepper = Stepper(make_backend("cpu", open_model(folder_of("qwen3", dtype=dtype)), orchestration=orchestration))
    prompt = prompt_of(257)
    singly = stepper.greedy(prompt, 40)
    assert stepper.greedy(prompt, 40, steps=7) == singly
    assert stepper.greedy(prompt, 40, steps=40) == singly


@pytest.mark.parametrize("orchestration", ["host", "device"])
@pytest.mark.parametrize("row", ["llama", "qwen3-bias", "phi3"])
def test_a_run_behind_gates_equals_a_run_after_the_fetch(row, orchestration, folder_of, make_backend):
    """The weights arrive, stage by stage, while the step waits for each; the slab holds rubbish before."""
    model = open_model(folder_of(row))
    backend = make_backend("cpu", model, orchestration=orchestration)
    prompt = prompt_of(model.config.vocab_size)
    stepper = Stepper(backend)
    wanted = stepper.greedy(prompt, 1)
    for _ in range(3):
        rows = stepper.rows((stepper.sequence(), prompt), sample="last")
        assert backend.tokens_behind_gates(rows).tolist() == [wanted]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rounded_types_in_chunks_and_batches(dtype, backend, folder_of, theirs_of, make_backend):
    """A rounded key may differ in its last place between ways; transformers' own error bounds all of them."""
    theirs = theirs_of("qwen3", "default", dtype)
    stepper = Stepper(make_backend(backend, open_model(folder_of("qwen3", dtype=dtype))))
    a, b = stepper.sequence(), stepper.sequence()
    pieces = [stepper.feed((a, piece)) for piece in chunks(theirs.prompt, 9)]
    assert relative_error(np.concatenate(pieces), theirs.truth) <= theirs.own_error
    both = stepper.feed((stepper.sequence(), theirs.prompt[:5]), (b, theirs.prompt))
    assert relative_error(both[5:], theirs.truth) <= theirs.own_error
