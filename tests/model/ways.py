"""What holds for every family, however a model is stepped: one answer, and on a CPU the same bits.

Knows nothing about families.
"""

import numpy as np
from tests.model import tiny
from tests.model.runner import Stepper, chunks, in_turns, in_ways, prompt_logits
from tests.model.theirs import GREEDY_FROM, GREEDY_TOKENS, prompt_of, relative_error, typical_error

from coterie.kernels.cpu import ISAS
from coterie.models.model import open_model
from coterie.models.quantize import quantize_folder

FP32_TOLERANCE = 1e-4  # relative to the largest logit
WAYS = {
    "unfused, host": {"rule_set": "none", "orchestration": "host"},
    "one thread": {"threads": 1},
    "three threads": {"threads": 3},
    **{f"isa {isa}": {"isa": isa} for isa in ISAS},
}
SHORT = [5, 6, 7, 8, 9]


def check_float32(backend, row, rope, folder_of, theirs_of, make_backend):
    """Logits of a prompt, and greedy tokens, are those of transformers in float32."""
    check_theirs(make_backend(backend, open_model(tiny.expert(folder_of(row, rope)))), theirs_of(row, rope))


def check_theirs(backend, theirs, bound=FP32_TOLERANCE):
    """The same of an open model, whatever its folder."""
    stepper = Stepper(backend)
    assert relative_error(stepper.feed((stepper.sequence(), theirs.prompt)), theirs.truth) <= bound
    assert stepper.greedy(theirs.prompt[:GREEDY_FROM], GREEDY_TOKENS) == theirs.greedy


def check_rounded(backend, row, rope, dtype, folder_of, theirs_of, make_backend):
    """Nearer to float32 than the type itself; with branches, whose choice rounding may turn over, for most tokens.

    A token whose next two branches weigh nearly the same takes the other one in some arithmetic, ours or theirs: what
    the largest error is then depends on who met such a token, and no type bounds it.
    """
    theirs = theirs_of(row, rope, dtype)
    found = prompt_logits(make_backend(backend, open_model(tiny.expert(folder_of(row, rope, dtype)))), theirs.prompt)
    error_of, own = (relative_error, theirs.own_error)
    if row in tiny.BRANCHED:
        error_of, own = (typical_error, theirs.own_typical_error)
    assert 0 < error_of(found, theirs.truth) <= own


def check_bits(stepper):
    """A token has the same bits alone, in a batch and in a prompt however it is cut, in blocks that were another's."""
    prompt = prompt_of(257)
    whole = stepper.feed((stepper.sequence(), prompt))
    for size in (1, 3, 7, 16):
        sequence = stepper.sequence()
        pieces = [stepper.feed((sequence, piece)) for piece in chunks(prompt, size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        stepper._free += sequence.blocks  # the next one begins in blocks that are full of this one's
    a, b, c = (stepper.sequence() for _ in range(3))
    stepper.feed((b, prompt[:9]))
    stepper.feed((c, prompt[:1]), (b, prompt[9:10]))
    logits = stepper.feed((a, prompt), (b, prompt[10:11]), (c, prompt[1:20]))
    np.testing.assert_array_equal(logits, np.concatenate([whole, whole[10:11], whole[1:20]]))


def check_way(stepper, theirs):
    """Logits of a prompt and of later tokens, and greedy tokens, one by one and many steps at once."""
    sequence, prompt = stepper.sequence(), theirs.prompt
    pieces = [stepper.feed((sequence, piece)) for piece in (prompt[:30], prompt[30:31], prompt[31:])]
    assert relative_error(np.concatenate(pieces), theirs.truth) <= FP32_TOLERANCE
    assert stepper.greedy(prompt[:GREEDY_FROM], GREEDY_TOKENS, steps=7) == theirs.greedy


def check_cpus_bits(on_cpu, on_gpu):
    """A prompt, steps that are captured or walked, and the same from another place, in blocks that were others'."""
    np.testing.assert_array_equal(*(s.feed((s.sequence(), SHORT)) for s in map(Stepper, (on_cpu, on_gpu))))
    wanted = Stepper(on_cpu).greedy(SHORT, 12, 4)
    assert Stepper(on_gpu).greedy(SHORT, 12, 4) == wanted
    on_gpu.move_weights()
    assert Stepper(on_gpu).greedy(SHORT, 12, 4) == wanted
    assert on_gpu.device.remarks == ()


def check_packed(folder, packing, target, make_backend, stay=(), packed=(), error_of=relative_error, bound=2e-2):
    """The model with packed weights as the reference has it, and however it is stepped to the bit; it is returned.

    Tensors whose names end in one of `stay` are as they were, those of `packed`, by their names within a layer, packed.
    """
    quantize_folder(folder, target, packing)
    model = open_model(target)
    kinds = {name.split(".", 3)[-1]: model.graph.values[name].dtype for name in model.layout.tensors}
    assert not [kind for kind, found in kinds.items() if kind.endswith(stay) and found.is_packed]
    assert {kinds[name] for name in packed} == {packing.layers}
    prompt = prompt_of(257)
    stepper = Stepper(make_backend("cpu", model))
    found = stepper.feed((stepper.sequence(), prompt))
    assert error_of(found, prompt_logits(make_backend("reference", model), prompt)) < bound
    sequence = stepper.sequence()
    pieces = [stepper.feed((sequence, piece)) for piece in chunks(prompt, 11)]
    np.testing.assert_array_equal(np.concatenate(pieces), found)
    return model


def check_one_answer(backend, rule_set, model, wanted, prompt, bound, make_backend):
    """That logits are these, alone and in a batch, at once and token by token; on a CPU to the bit."""
    stepper = Stepper(make_backend(backend, model, *([] if backend == "reference" else [rule_set])))
    alone, *others = in_ways(stepper, prompt)
    assert relative_error(alone, wanted) <= bound
    for found in others:
        assert relative_error(found, alone) <= 1e-5
        if backend == "cpu":
            np.testing.assert_array_equal(found, alone)


def check_in_turns(base, models, make_backend):
    """That two fine-tunes of a base, one architecture, have in turn on one device the tokens of each alone."""
    assert models[0].key == models[1].key != base.key
    prompt = prompt_of(base.config.vocab_size)[:10]
    alone = [Stepper(make_backend("cpu", model)).greedy(prompt, 6) for model in models]
    plain = Stepper(make_backend("cpu", base)).greedy(prompt, 6)
    assert len({tuple(tokens) for tokens in (*alone, plain)}) == 3
    assert in_turns(make_backend("cpu", models[0]), models, prompt, 6) == alone
