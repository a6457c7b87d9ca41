"""`coterie diff`: a device beside the reference, each value within what its rounding allows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.system.commands import refused, run
from tests.system.tiny import write_expert

from coterie.api.compare import (
    ATTENTION_TOLERANCE,
    HALVES_TOLERANCE,
    KV_TOLERANCE,
    PACKED_TOLERANCE,
    TOLERANCE,
    tolerances,
)
from coterie.core.dtypes import DType
from coterie.graph.ops import BF16
from coterie.models.model import open_model, with_activations
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_diff_compares_every_buffer(dtype: DType, tmp_path: Path) -> None:
    result = run("diff", write_expert(tmp_path / "x", 0, dtype, torch_dtype=dtype.name.lower()), "--json")
    assert result.exit_code == 0, result.output
    got = json.loads(result.stdout)
    assert {row["rule_set"] for row in got["rows"]} == {"none", "cache"}
    assert all(row["max_error"] <= row["tolerance"] for row in got["rows"])
    assert any(row["name"].endswith("logits") for row in got["rows"])


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_only_what_reads_rounded_keys_and_values_may_be_off_by_a_rounding(dtype: DType, tmp_path: Path) -> None:
    """A key near the middle between two neighbours is kept as either: no kernel is wrong."""
    found = tolerances(open_model(write_expert(tmp_path / "x", 0, dtype), "x"), "cpu")
    for name in ("embed/x", "layers.0/q", "layers.0/k", "layers.0/v"):
        assert found[name] == TOLERANCE
    for name in ("layers.0/attention", "layers.0/down", "layers.1/q", "head/logits"):
        assert found[name] == KV_TOLERANCE.get(dtype, TOLERANCE)


def test_what_meets_packed_weights_is_rounded_in_the_reference_too_and_may_go_the_other_way(tmp_path: Path) -> None:
    source = write_expert(tmp_path / "x", 0, DType.F32, torch_dtype="float32")
    folder = quantize_folder(source, tmp_path / "packed", Packing(DType.Q4, DType.Q8)).folder
    found = tolerances(open_model(folder), "cpu")
    assert found["embed/x"] == TOLERANCE
    for name in ("layers.0/q", "layers.0/attention", "layers.0/down", "head/logits"):
        assert found[name] == PACKED_TOLERANCE
    rows = json.loads(run("diff", folder, "--json").stdout)["rows"]
    assert all(row["max_error"] <= row["tolerance"] for row in rows)
    assert max(row["max_error"] for row in rows) < TOLERANCE / 10  # none is so near the middle here


def test_products_of_bfloat16_are_compared_with_the_reference_that_rounds(tmp_path: Path) -> None:
    """What reads them may be off by as much as a number near the middle between two; what rounds is no mistake."""
    folder = write_expert(tmp_path / "x", 0)
    model = with_activations(open_model(folder), BF16)
    allowed = tolerances(model, "cpu")
    assert set(allowed.values()) == {TOLERANCE, HALVES_TOLERANCE, ATTENTION_TOLERANCE}
    attending = {name for name, bound in allowed.items() if bound == ATTENTION_TOLERANCE}
    assert attending == {name for name in allowed if name.endswith("/attention")}
    rows = json.loads(run("diff", folder, "--activations", "bf16", "--json").stdout)["rows"]
    off = {row["name"]: row["max_error"] for row in rows if row["rule_set"] == "none"}
    assert off["layers.0/q"] < TOLERANCE / 10  # of float32 activations it would be some 2^-9 off
    assert all(row["max_error"] <= row["tolerance"] for row in rows)
    refused(run("diff", folder, "--activations", "int8"), "no expert of x has packed weights")


def test_diff_sees_values_that_are_no_numbers(tmp_path: Path) -> None:
    folder = write_expert(tmp_path / "x", 0)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"\xc0\x7f")  # a NaN in the last row of the head
    result = run("diff", folder)
    assert result.exit_code == 1, result.output
    assert "logits" in result.stderr


def test_names_are_whole_in_a_narrow_table(folder: Path) -> None:
    """A name that is cut off may be either of two."""
    said = run("diff", folder / "ada").stdout
    assert "…" not in said.replace("\n", "")
