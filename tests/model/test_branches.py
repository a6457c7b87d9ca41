"""Models with branches against transformers, and one answer however they are stepped or stored, to the bit on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tests.model import tiny
from tests.model.configs import changed, check_refused
from tests.model.runner import Stepper, chunks, prompt_logits
from tests.model.ways import check_float32, check_rounded

from coterie.checkpoint.folder import Checkpoint
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.kernels.cpu import ISAS
from coterie.models.families import FAMILIES
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.registry import decoder_graph
from coterie.models.tensors import equal_bytes

SHARED = ("qwen2-moe", "granitemoeshared", "glm4-moe", "ernie-moe", "dots1")  # all tokens take one branch
OFTEN = ("qwen3-moe", "mixtral-all", "olmoe", "granitemoe", *SHARED, "gpt-oss")
SELDOM = [row for row in tiny.BRANCH_ROWS if row not in OFTEN]


@pytest.mark.parametrize("row", [*OFTEN, *(pytest.param(row, marks=pytest.mark.long) for row in SELDOM)])
def test_float32(row, folder_of, theirs_of, make_backend):
    check_float32("cpu", row, "default", folder_of, theirs_of, make_backend)


def test_float32_by_the_reference(folder_of, theirs_of, make_backend):
    check_float32("reference", "qwen3-moe-mixed", "default", folder_of, theirs_of, make_backend)


@pytest.mark.long
@pytest.mark.parametrize("row", tiny.BRANCH_ROWS)
def test_every_row_by_the_reference(row, folder_of, theirs_of, make_backend):
    check_float32("reference", row, "default", folder_of, theirs_of, make_backend)


def test_bfloat16_is_within_the_error_of_transformers(folder_of, theirs_of, make_backend):
    check_rounded("cpu", "qwen3-moe", "default", "bf16", folder_of, theirs_of, make_backend)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("row", ["mixtral", "olmoe", "qwen3-moe-mixed", "granitemoe", *SHARED])
def test_rounded_types_are_within_the_error_of_transformers(row, dtype, folder_of, theirs_of, make_backend):
    check_rounded("cpu", row, "default", dtype, folder_of, theirs_of, make_backend)


WAYS = {
    "unfused, host": {"rule_set": "none", "orchestration": "host"},
    "one thread": {"threads": 1},
    "three threads": {"threads": 3},
}


def stepped(backend, prompt):
    """Logits of a prompt whole, in pieces of each size, and beside other sequences."""
    stepper = Stepper(backend)
    yield stepper.feed((stepper.sequence(), prompt))
    for size in (1, 3, 17):
        sequence = stepper.sequence()
        yield np.concatenate([stepper.feed((sequence, piece)) for piece in chunks(prompt, size)])
    beside, sequence = stepper.sequence(), stepper.sequence()
    together = stepper.feed((beside, prompt[::-1][:9]), (sequence, prompt))
    yield together[9:]


@pytest.mark.parametrize(
    "row", ["qwen3-moe", *(pytest.param(row, marks=pytest.mark.long) for row in ("mixtral-all", "gpt-oss", *SHARED))]
)
def test_a_token_has_the_same_bits_alone_in_a_batch_and_in_a_prompt(row, folder_of, make_backend):
    model = open_model(tiny.expert(folder_of(row, "default", "bf16")))
    prompt = [int(t) for t in np.random.default_rng(3).integers(0, 257, 60)]
    first, *others = stepped(make_backend("cpu", model), prompt)
    for other in others:
        np.testing.assert_array_equal(other, first)
    for options in WAYS.values():
        np.testing.assert_array_equal(prompt_logits(make_backend("cpu", model, **options), prompt), first)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa, folder_of, theirs_of, make_backend):
    backend = make_backend("cpu", open_model(folder_of("qwen3-moe")), isa=isa)
    stepper, theirs = Stepper(backend), theirs_of("qwen3-moe", "default")
    found = stepper.feed((stepper.sequence(), theirs.prompt))
    np.testing.assert_allclose(found, theirs.truth, atol=1e-4 * np.abs(theirs.truth).max())


@pytest.mark.parametrize("row", ["qwen3-moe", "mixtral", "granitemoe", "qwen2-moe", "ernie-moe"])
def test_stacked_matrices_are_those_of_the_branches(row, folder_of, tmp_path):
    """What transformers writes on request: a tensor for the matrices of all branches."""
    apart = open_model(folder_of(row))
    stacked = open_model(tiny.save(tiny.make(row), tmp_path, save_original_format=False, max_shard_size="20KB"))
    assert len({info.shard.path for info in stacked.checkpoint.tensors.values()}) > 3
    assert stacked.key == apart.key
    assert len(Checkpoint.open(tmp_path).tensors) < len(stacked.checkpoint.tensors)
    for name, info in apart.checkpoint.tensors.items():
        assert equal_bytes(info, stacked.checkpoint.tensors[name]), name


@pytest.mark.parametrize("name", ["mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
def test_what_is_stored_in_two_ways_is_refused(name, folder_of, tmp_path):
    model = tiny.make("mixtral")
    stacked = tiny.save(model, tmp_path / "stacked", save_original_format=False)
    folder = tiny.save(model, tmp_path / "both")
    place = f"model.layers.1.{name}"
    both = load_file(folder / "model.safetensors") | {place: 2 * load_file(stacked / "model.safetensors")[place]}
    save_file(both, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedError, match=f"tensors that its config.json does not use: {place}"):
        open_model(folder)


def test_layers_that_predict_further_ahead_are_left_out(folder_of, tmp_path):
    """As in released files of GLM-4.5: a layer behind the last, which config.json counts."""
    folder = tiny.save(tiny.make("glm4-moe-air"), tmp_path / "more")
    tensors = load_file(folder / "model.safetensors")
    last = {name: value for name, value in tensors.items() if name.startswith("model.layers.2.")}
    more = {name.replace(".2.", ".3.", 1): value.clone() for name, value in last.items()}
    save_file(tensors | more, folder / "model.safetensors", {"format": "pt"})
    assert open_model(folder).key == open_model(folder_of("glm4-moe-air")).key
    check_refused(folder, tmp_path / "plain", {"num_nextn_predict_layers": 0}, r"does not use: model\.layers\.3\.")


def test_what_chooses_branches_is_not_packed():
    packing = Packing(DType.Q4, DType.Q8)
    for family in (f for f in FAMILIES.values() if f.branches):
        names = family.branches.names
        for name in names.choosers:
            assert packing.dtype_of(f"model.layers.0.{name}", (4, 64)) is None
        assert packing.dtype_of(f"model.layers.0.{names.branch.format(3)}{names.up}.weight", (4, 64)) is DType.Q4


def test_matrices_are_read_where_the_weights_are_now(folder_of, make_backend):
    """As after an eviction: the rows of a step that are kept, and their tables, follow the weights."""
    backend = make_backend("cpu", open_model(folder_of("qwen3-moe")))
    stepper = Stepper(backend)
    rows = stepper.rows((stepper.sequence(), [5, 6, 7]))
    wanted = backend.tokens(rows)
    backend.move_weights()
    np.testing.assert_array_equal(backend.tokens(rows), wanted)


def test_stages_run_as_their_weights_arrive(folder_of, make_backend):
    backend = make_backend("cpu", open_model(folder_of("qwen3-moe")))
    stepper = Stepper(backend)
    rows = stepper.rows((stepper.sequence(), [5, 6, 7]))
    wanted = backend.tokens(rows)
    np.testing.assert_array_equal(backend.tokens_behind_gates(rows), wanted)


WRONG = {
    "more than there are": ({"num_experts_per_tok": 9}, CheckpointError, "num_experts_per_tok is 9; .* at most the 7"),
    "none": ({"num_local_experts": 0}, CheckpointError, "num_local_experts is 0"),
    "no layer": ({"mlp_only_layers": [0, 1, 2]}, UnsupportedError, "none of the 3 layers has branches"),
    "layers that are no list": ({"mlp_only_layers": 1}, CheckpointError, "mlp_only_layers is 1"),
    "a window": ({"use_sliding_window": True}, UnsupportedError, "use_sliding_window = True is not supported"),
    "a shared branch": ({"shared_expert_intermediate_size": 8}, UnsupportedError, "a branch that all tokens take"),
    "shared branches": ({"n_shared_experts": 1}, UnsupportedError, "branches that all tokens take"),
    "groups": ({"n_group": 4}, UnsupportedError, "branches chosen by groups"),
    "scores": ({"scoring_func": "sigmoid"}, UnsupportedError, "branches chosen by scores other than a softmax"),
    "a bias": ({"topk_method": "noaux_tc"}, UnsupportedError, "branches chosen with a bias"),
    "scores by another name": ({"score_func": "sigmoid"}, UnsupportedError, "scores other than a softmax"),
    "a factor": ({"routed_scaling_factor": 2.5}, UnsupportedError, "what branches give, times a factor"),
    "clipping": ({"swiglu_limit": 7.0}, UnsupportedError, "clipped gates"),
    "another width": ({"moe_intermediate_size": 22}, CheckpointError, "has shape .* but config.json wants"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_or_not_run_is_said(wrong, folder_of, tmp_path):
    changes, error, sentence = WRONG[wrong]
    with pytest.raises(error, match=sentence):
        open_model(changed(folder_of("qwen3-moe"), tmp_path / "changed", **changes))


def test_families_with_other_branches_are_refused_with_the_reason(folder_of, tmp_path):
    named = {"model_type": "phimoe", "architectures": ["Whatever"]}
    check_refused(folder_of("qwen3-moe"), tmp_path / "changed", named, "architecture 'phimoe' is not supported: ")


def test_layers_without_branches_have_a_plain_block(folder_of):
    model = open_model(folder_of("qwen3-moe-mixed"))
    kinds = {stage: [op.kind for op in model.graph.ops if op.stage == stage] for stage in model.graph.stages}
    assert [("branch_down" in kinds[f"layers.{layer}"]) for layer in range(4)] == [False, False, False, True]
    assert "silu" in kinds["layers.0"]
    assert "silu" not in kinds["layers.3"]
    assert decoder_graph(model.config, {v.name: v.dtype for v in model.graph.weights}) == model.graph
