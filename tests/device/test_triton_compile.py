"""The GPU's kernels compile for an H100 without one: nothing spills, loads are wide, tensor cores are used.

Knows nothing about what kernels compute.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

# Only looked for: to import triton here would keep the other tests of this process from interpreting it.
if find_spec("torch") is None or find_spec("triton") is None:
    pytest.skip("the extra cuda is not installed: torch or triton is missing", allow_module_level=True)

MAX_SHARED_BYTES = 227 * 1024  # of a program on an H100: CUDA C++ Programming Guide, table of technical specifications
MAX_SPILLED_BYTES = 16
# What launches do that begin before the last is over, in the letters of compiled_ptx.EARLY_ORDER.
# Loops before the wait look for a token that is alone, and reduce an angle.
EARLY = {"described": "NLL?W", "described_heads": "NLLLW"} | dict.fromkeys(
    ("few", "lone_tokens", "lone_tokens_wide", "join"), "N[LJ]*W"
)
EARLY |= dict.fromkeys(("stage", "chunk", "sample"), "NW")
EARLY["many"] = "N(L+J?)*W"  # addresses of weights that are asked for
EARLY |= dict.fromkeys(("norm", "norm_group", "norm_rope_append", "gate", "sigmoid"), "NW")
EARLY |= dict.fromkeys(("conv", "delta_whole", "delta_columns", "scan"), "N[LJ]*W")  # what a sequence keeps, before
EARLY |= dict.fromkeys(("choose", "list", "group", "sum", "add"), "NW")
EARLY |= dict.fromkeys(("few_each", "many_each", "absorb", "unfold"), "NL*W")
EARLY |= dict.fromkeys(("append_row", "absorb_many", "unfold_many"), "NW")


def compiled(tmp_path, *names, capability=90):
    """What a process that does not interpret makes of these kernels, or of all."""
    return lines(tmp_path, "tests.device.compiled", *names, capability=capability)


def lines(tmp_path, module, *names, capability=90):
    """What a program prints in a process that does not interpret, line by line."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"COMPILE_FOR": str(capability), "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-W", "ignore", "-m", module, *names]
    ran = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


def check_early(found):
    """All programs wait, once, before they change anything or end; those of few tokens have loaded before.

    Descriptors are made before: they need addresses of weights, which are loaded from the row.
    """
    for one in found:
        assert re.fullmatch(EARLY.get(one["kernel"].rpartition(" ")[2], ""), one["early"]), one


def is_sliced(one):
    """Whether a product has so few tokens that warps share rows (slices.py), and not those of six or of two bits."""
    last = one["kernel"].startswith("take_norm_linear")  # of a prompt it takes one row for each sequence
    few = (one["step"] == "decode 16" or last) and one["dtype"] not in ("Q6", "Q2", "F32")
    return few and one["kernel"].endswith(": many") and not one["kernel"].startswith("branch")


def check(found):
    check_early(found)
    for one in found:
        assert one["spilled_bytes"] <= MAX_SPILLED_BYTES, one
        assert one["shared_bytes"] <= MAX_SHARED_BYTES, one
        part = one["kernel"].rpartition(" ")[2]
        if part in ("few", "many", "chunk", "lone_tokens", "stage"):
            assert one["widest_load_bits"] == 128, one
        if part in ("many", "described", "described_heads", "chunk") and one["dtype"] != "F32":
            assert one["products"] == ("mma" if is_sliced(one) else "wgmma"), one
        if part in ("many", "described", "described_heads", "chunk", "lone_tokens"):
            assert one["copies_ahead"], one


NORMS = ("norm_rope_append", "norm_add", "gelu", "softcap", "norm_gate_up_gelu_mul")
PARTS_OF_BRANCHES = {"choose", "few", "list", "group", "stage", "many", "sum"}
OF_BRANCHES = ("choose_branches", "branch_gate_up", "branch_down_add")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A function (names) -> kernels as they are, all compiled in one process: to import torch takes as long."""
    found = compiled(tmp_path_factory.mktemp("few"), "linear", *NORMS, *OF_BRANCHES, "feed", "meet")
    return lambda *names: [one for one in found if one["kernel"].partition(":")[0] in names]


def test_a_linear_compiles_for_decode_and_prefill(few):
    found = few("linear")
    assert [one["kernel"] for one in found] == ["linear: few", "linear: stage", "linear: described"]
    check(found)


@pytest.mark.parametrize("options", ["in part", "not rotated", pytest.param("interleaved", marks=pytest.mark.long)])
def test_what_some_families_have_compiles(tmp_path, options):
    """Heads rotated in part, which descriptors do not take, or not at all, which they do; scaled products."""
    found = compiled(tmp_path, options)
    described = {one["kernel"] for one in found if "described_heads" in one["kernel"]}
    assert bool(described) == (options == "not rotated")
    check(found)


def test_capped_scores_and_gates_without_a_norm_compile(tmp_path):
    found = compiled(tmp_path, "capped")
    parts = {one["kernel"].rpartition(" ")[2] for one in found}
    assert {"lone_tokens", "join", "chunk", "few", "described"} <= parts
    check(found)


def test_kernels_of_norms_behind_blocks_and_of_gelu_compile(few):
    found = few(*NORMS)
    assert {one["kernel"].partition(":")[0] for one in found} == set(NORMS)
    check(found)


def test_kernels_of_branches_compile(few):
    found = few(*OF_BRANCHES)
    assert {one["kernel"].rpartition(" ")[2] for one in found} == PARTS_OF_BRANCHES
    check(found)


@pytest.mark.long
@pytest.mark.parametrize("shape", ["branches", "wide branches"])
def test_kernels_of_branches_compile_for_every_type_and_step(tmp_path, shape):
    """Many that are narrow, and few that are wide, which have the tiles of a branch with many tokens."""
    found = compiled(tmp_path, shape)
    assert {one["kernel"].rpartition(" ")[2] for one in found} >= PARTS_OF_BRANCHES - {"choose"}
    check(found)


@pytest.mark.long
def test_what_layers_of_gemma_4_have_compiles(tmp_path):
    check(compiled(tmp_path, "gemma4 own"))


@pytest.mark.long
@pytest.mark.parametrize("heads", ["gemma4", "gemma4 wide"])
def test_attention_of_512_channels_spills_nothing(tmp_path, heads):
    """Queries come from shared memory: in registers, where other heads have theirs, they would spill 1000 bytes."""
    found = compiled(tmp_path, heads)
    assert {one["kernel"].rpartition(" ")[2] for one in found} >= {"lone_tokens_wide", "join", "chunk"}
    for one in found:
        wide = one["kernel"].endswith(("lone_tokens_wide", "chunk"))
        assert one["spilled_bytes"] == 0, one
        assert one["shared_bytes"] <= MAX_SHARED_BYTES, one
        assert not wide or (one["products"], one["widest_load_bits"]) == ("wgmma", 128), one


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "parts"),
    [
        *((attention, {"lone_tokens", "join", "chunk"}) for attention in ("sinks", "windows", "distances", "slopes")),
        *((branches, {"few", "many", "sum", "add"}) for branches in ("clipped branches", "gpt-oss")),
    ],
)
def test_sinks_clipped_gates_and_biases_of_branches_compile(tmp_path, what, parts):
    found = compiled(tmp_path, what)
    assert {one["kernel"].rpartition(" ")[2] for one in found} >= parts
    check(found)


@pytest.mark.long
@pytest.mark.parametrize("shares", ["shares", "one share", "wide shares", "rank 8", "rank 64"])
def test_kernels_of_shares_compile_for_adapters_and_differences(tmp_path, shares):
    """Weights are loaded widely, and those of few tokens and low rank before the launch before is over."""
    found = compiled(tmp_path, shares)
    check(found)
    for one in found:
        part = one["kernel"].rpartition(" ")[2]
        assert one["widest_load_bits"] == 128, one
        assert part != "many_each" or one["dtype"] == "F32" or one["products"], one
        assert part != "few_each" or shares == "wide shares" or one["early"].count("L") > 5, one


@pytest.mark.long
def test_kernels_of_gated_delta_nets_compile_for_every_step(tmp_path):
    """All that a step of one token a sequence loads of a state stands before its wait."""
    found = compiled(tmp_path, "nets")
    assert {one["kernel"].rpartition(" ")[2] for one in found} >= {
        "conv",
        "delta_whole",
        "delta_columns",
        "gate",
        "sigmoid",
    }
    check(found)
    for one in found:
        assert one["spilled_bytes"] == 0 or one["kernel"].startswith("linear"), one
        if one["kernel"].endswith(": delta_columns"):
            assert one["copies_ahead"], one


def test_kernels_of_selective_state_spaces_compile_for_every_step(tmp_path):
    """Nothing spills; all that a step of one token a sequence loads of a state stands before its wait."""
    found = compiled(tmp_path, "spaces")
    assert {one["kernel"].rpartition(" ")[2] for one in found} == {"conv", "scan", "norm_group", "mul_row"}
    check(found)
    for one in found:
        assert one["spilled_bytes"] == 0, one
        if one["kernel"].endswith(": scan"):
            assert one["widest_load_bits"] == 128 or not one["step"].startswith("decode"), one


LATENT = {"append_row", "absorb", "absorb_many", "unfold", "unfold_many", "lone_tokens", "join", "chunk"}


@pytest.mark.long
def test_kernels_of_latent_attention_compile_for_every_step(tmp_path):
    """Nothing spills, though a row has 576 numbers; few tokens' weights are loaded before the wait."""
    found = compiled(tmp_path, "latent")
    assert {one["kernel"].rpartition(" ")[2] for one in found} == LATENT
    check(found)
    for one in found:
        part = one["kernel"].rpartition(" ")[2]
        assert one["spilled_bytes"] == 0, one
        assert part == "join" or one["widest_load_bits"] == 128, one
        assert part not in ("absorb", "unfold") or one["early"].count("L") > 8, one
        if one["dtype"] != "F32" and part in ("lone_tokens", "chunk"):
            assert one["products"] == "wgmma", one


@pytest.mark.long
def test_a_choice_by_groups_and_with_a_bias_compiles(tmp_path):
    found = compiled(tmp_path, "grouped branches")
    assert {one["kernel"] for one in found} == {"choose_branches: choose"}
    check(found)


@pytest.mark.long
def test_kernels_of_layer_norms_compile(tmp_path):
    found = compiled(tmp_path, "layer norms")
    assert {"few", "stage", "described", "described_heads"} <= {one["kernel"].rpartition(" ")[2] for one in found}
    check(found)


def test_products_whose_rows_are_one_step_compile(tmp_path):
    """No step is left to be pipelined then, and the compiler of Triton 3.6 gave up on the loop over tiles."""
    found = compiled(tmp_path, "small")
    assert sum("described" in one["kernel"] for one in found) == 2
    assert sum("many_each" in one["kernel"] for one in found) == 2  # as changes of low rank are
    check_early(found)
    for one in found:
        assert one["shared_bytes"] <= MAX_SHARED_BYTES, one
        assert one["spilled_bytes"] <= MAX_SPILLED_BYTES, one


@pytest.mark.long
def test_wide_heads_fit_a_multiprocessor(tmp_path):
    """A tile holds whole heads: more rows than other tiles, and so the most shared memory."""
    found = compiled(tmp_path, "wide")
    assert {one["step"] for one in found} >= {"decode 1", "decode 4", "decode 16", "prefill 2048"}
    check(found)


# Shared memory of a program at most, in KiB: an A100, an RTX 3090, a B200, an RTX 5090. CUDA C++ Programming Guide,
# table of technical specifications.
@pytest.mark.parametrize(
    ("capability", "most", "kernels"),
    [
        (86, 99, ("linear", "take_norm_linear")),
        *(
            pytest.param(*gpu, (some,), marks=pytest.mark.long)
            for gpu in ((80, 163), (86, 99), (100, 227), (120, 99))
            for some in ("batches", "wide", "branches", "gemma4", "latent", "nets", "spaces", "shares")
        ),
    ],
)
def test_what_other_gpus_run_fits_their_shared_memory(tmp_path, capability, most, kernels):
    found = compiled(tmp_path, *kernels, capability=capability)
    assert found
    for one in found:
        assert one["shared_bytes"] <= most * 1024, one
        assert one["early"] == "" or capability >= 90


def test_the_end_of_a_step_compiles_and_one_thread_reads_what_another_stream_writes(few):
    """Triton lets each warp load a word for itself, and that may change between two loads; an atomic is done once."""
    (found,) = few("feed")
    check([found])
    assert found["atomics"] == 1


def test_programs_of_a_walk_see_what_others_stored(few):
    """Around each arrival and each look at the count stand barriers of a program's threads.

    Between the two are only loads, of what nobody changes: where the weights lie that are asked for meanwhile.
    So the one thread that releases and acquires does it for all; and no load may go by what a cache held before.
    Of 1 phase or 16 it is the same kernel, or the program would have ended with a status.
    """
    (found,) = few("meet")
    assert found["kernel"] == "meet: walk"
    assert found["releases"] == found["meetings"] == 2  # after each phase, and after the end of a step
    assert found["atomics"] >= 3
    assert found["noncoherent_loads"] == 0
    check([found])


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["BF16", "F16", "Q8", "Q6", "Q4", "Q4Z", "Q2", "MX4", "F32"])
def test_every_kernel_compiles(tmp_path, dtype):
    found = compiled(tmp_path, "all", dtype)
    assert len(found) > (60 if dtype == "BF16" else 30)
    # Floats of 4 bits pass by ones without an exponent, which must not become 0, or tables make them.
    for one in found if dtype == "MX4" else ():
        few = one["kernel"].startswith("branch") and one["kernel"].endswith(": few") and one["step"] != "decode 1"
        whole = one["kernel"].endswith((": many", ": embed", "_each")) and not is_sliced(one)
        assert bool(one["lifted"]) == (few or whole), one
        assert not one["flushed"], one
    check(found)


@pytest.mark.long
@pytest.mark.parametrize("tokens", ["one token", "few tokens"])
def test_few_tokens_meet_packed_weights_without_conversions(tmp_path, tokens):
    """Weights are asked for before the wait, and only sums of a few warps go through shared memory."""
    found = compiled(tmp_path, tokens)
    assert len(found) == 3 * 5
    check(found)
    for one in found:
        assert one["spilled_bytes"] == one["converted"] == 0, one
        assert one["shared_bytes"] <= 256, one
        assert one["early"].count("L") > 16, one


@pytest.mark.long
def test_batches_of_16_meet_packed_weights_without_conversions(tmp_path):
    """Weights leave shared memory as bytes and become bfloat16 in registers; nothing spills. Before the wait they are
    asked for, but for rows that a last tile has and the weight has not.
    """
    found = compiled(tmp_path, "slices")
    assert sum(map(is_sliced, found)) == 4 * 6
    check(found)
    for one in filter(is_sliced, found):
        assert one["spilled_bytes"] == one["converted"] == 0, one
        assert one["asked_if_there"] == 1, one


@pytest.mark.long
def test_products_of_batches_compile(tmp_path):
    """Their tiles are others than those of 16 tokens and of prefill."""
    found = compiled(tmp_path, "batches")
    assert sum(one["kernel"].endswith(": many") for one in found) == 2 * 4 * 8
    check(found)
