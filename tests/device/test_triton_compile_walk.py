"""Walks of whole programs, and launches that are called again, compile for an H100 without one."""

from __future__ import annotations

from importlib.util import find_spec
from statistics import median

import pytest
from tests.device.test_triton_compile import MAX_SHARED_BYTES, compiled, lines

# Only looked for: to import triton here would keep the other tests of this process from interpreting it.
if find_spec("torch") is None or find_spec("triton") is None:
    pytest.skip("the extra cuda is not installed: torch or triton is missing", allow_module_level=True)


MAX_SPILLED_BY_WALK_BYTES = 144  # one kernel that is all of a program's; by type: docs/triton_tables.md


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["BF16", "F16", "Q8", "Q6", "Q4", "Q4Z", "Q2", "MX4", "F32"])
def test_the_walk_of_a_whole_program_compiles(tmp_path, dtype):
    found = compiled(tmp_path, "walk", dtype)
    assert [one["step"] for one in found] == ["decode 1", "decode 4"]
    for one in found:
        assert one["releases"] == one["meetings"] == 2, one
        assert one["noncoherent_loads"] == 0, one
        assert one["widest_load_bits"] == 128, one
        assert one["shared_bytes"] <= MAX_SHARED_BYTES, one
        assert one["spilled_bytes"] <= MAX_SPILLED_BY_WALK_BYTES, one


@pytest.mark.long
@pytest.mark.parametrize(
    ("program", "steps"),
    [("walk behind", 1), *((f"walk {what}", 2) for what in ("branches", "nets", "clipped", "latent"))],
)
def test_the_walk_of_norms_behind_blocks_and_of_branches_compiles(tmp_path, program, steps):
    found = compiled(tmp_path, program)
    assert len(found) == steps
    for one in found:
        assert one["releases"] == one["meetings"] == 2, one
        assert one["noncoherent_loads"] == 0, one
        assert one["shared_bytes"] <= MAX_SHARED_BYTES, one
        assert one["spilled_bytes"] <= MAX_SPILLED_BY_WALK_BYTES, one


def test_a_launch_that_is_called_again_starts_the_same_without_the_compiler(tmp_path):
    """Grid, parameters and the way to start: Triton's own way through its compiler was the first."""
    found = {one.pop("launch"): one for one in lines(tmp_path, "tests.device.launched")}
    assert {"embed 0", "norm_qkv_rope_append 0", "attention 0", "feed", "walk", "words", "pieces"} <= set(found)
    places = [one["memory"] for name, one in found.items() if name.startswith("described")]
    assert len(set(places) - {None}) == 3  # launches overlap, so each makes its descriptors in a place of its own
    for name, one in found.items():
        assert one["equal"], name
        assert one["cooperative"] == (name == "walk")
    again, first = ([one[key] for one in found.values() if "first_us" in one] for key in ("again_us", "first_us"))
    assert median(first) > median(again)  # a single pair's times may be another process's
