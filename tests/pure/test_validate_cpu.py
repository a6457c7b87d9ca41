"""Errors of the model of a CPU: its benches predicted from two that calibrate, and results that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coterie.bench.shapes import shape_config
from coterie.core.errors import CoterieError, UsageError
from coterie.plan.validate.cpu import FEW_TOKENS, cpu_rows
from coterie.plan.validate.rows import VALIDATION
from coterie.plan.validate.run import validate

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_this_machines_own_benches():
    rows, said = cpu_rows(RESULTS, shape_config)
    held = [row for row in rows if row.split == VALIDATION]
    assert len(held) >= 8
    assert sum(abs(row.error) for row in held) / len(held) < 0.10
    assert "us to start a region" in said[0]
    assert all("commit" in row.name for row in rows)
    assert not any("135m" in row.name for row in held if row.dataset != "this CPU: switch"), "that work calibrates"


def test_a_prompt_that_calibrates_is_met_where_its_activations_are_rounded():
    """It was given what a few tokens reach, by another kernel."""
    rows, _ = cpu_rows(RESULTS / "zen5", shape_config)
    (error,) = (row.error for row in rows if "(prefill-135m, " in row.name)
    assert abs(error) < 0.01
    held = [abs(row.error) for row in rows if row.split == VALIDATION]
    assert len(held) == 5
    assert sum(held) / len(held) < 0.065, "docs/sizing.md says 6.4 %; it may get better, not worse"


def test_results_of_checkpoints_are_listed_as_dropped_and_the_others_count():
    outcome = validate(RESULTS / "zen5", shape_config)
    dropped = {item.name for item in outcome.dropped if item.dataset == "own checkpoint"}
    own = [json.loads(file.read_text())["workload"] for file in (RESULTS / "zen5").glob("*.json")]
    assert len(dropped) == sum("checkpoint" in workload for workload in own) > 0
    assert "decode-smollm2" in dropped
    assert not any(f"({name}," in row.name for row in outcome.rows for name in dropped)
    assert any("(decode-135m," in row.name for row in outcome.rows)


def test_one_token_waits_for_the_cores_where_they_unpack_slower_than_memory_reads(tmp_path):
    def decodes(rate):
        for file in RESULTS.glob("*.json"):
            raw = json.loads(file.read_text())
            if file.stem == "decode-1b-int4" and rate:
                raw["cached_flops_per_s"] = rate
            (tmp_path / file.name).write_text(json.dumps(raw))
        rows = [row for row in cpu_rows(tmp_path, shape_config)[0] if "1b int4" in row.name]
        return {batch: row.modelled_s for row in rows for batch in (1, 8) if f"batch {batch} " in row.name}

    without, fast, slow = decodes(None), decodes(1e15), decodes(40e9)
    assert slow[8] == fast[8] == without[8]
    assert fast[1] <= without[1]
    assert slow[1] > 2 * 1.0e9 / 40e9, "a thousand million weights at 20 thousand million a second"


def test_prompts_run_at_the_rate_of_products_from_cache_that_was_measured_beside_them(tmp_path):
    """A slow hour, or a length that fills tiles badly, is in that limit; multiply-adds in registers do not feel it."""

    def warm(rates):
        for name in ("decode-135m", "prefill-135m", "switch-135m"):
            raw = json.loads((RESULTS / f"{name}.json").read_text())
            if name in rates:
                raw["cached_flops_per_s"] = rates[name]
            (tmp_path / f"{name}.json").write_text(json.dumps(raw))
        rows, said = cpu_rows(tmp_path, shape_config)
        return next(row.modelled_s for row in rows if row.name.startswith("warm")), said[0]

    plain, said = warm({})
    assert "from cache" not in said
    assert warm({"switch-135m": 1e11})[0] == plain, "no prompt says what share of them a step reaches"
    assert warm({"prefill-135m": 1e11})[0] == plain, "the switch has none beside it"
    same, said = warm({"prefill-135m": 1e11, "switch-135m": 1e11})
    slow, _ = warm({"prefill-135m": 1e11, "switch-135m": 0.5e11})
    assert "from cache" in said
    other_s = 2 * same - slow
    assert 0 < other_s < 0.03 * same, "all but starts of regions and what waits for memory takes twice as long"
    assert warm({"prefill-135m": 2e11, "switch-135m": 1e11})[0] == pytest.approx(slow)


def test_few_tokens_have_a_kernel_whose_share_is_their_own(tmp_path):
    assert f"kFewTokens = {FEW_TOKENS};" in (RESULTS.parents[1] / "csrc" / "tile.h").read_text()

    def batches(slower):
        for name in ("decode-135m", "prefill-135m", "decode-1b"):
            raw = json.loads((RESULTS / "avx2" / f"{name}.json").read_text())
            if name == "decode-135m":
                raw["batch"]["seconds_per_step"] *= slower
            (tmp_path / f"{name}.json").write_text(json.dumps(raw))
        rows = cpu_rows(tmp_path, shape_config)[0]
        batch = {row.name.split()[0]: row for row in rows if "batch 8" in row.name}
        assert batch["135m"].error == pytest.approx(0.0, abs=0.02)
        return batch["1b"].modelled_s, next(row.modelled_s for row in rows if "512 tokens" in row.name)

    (few, many), (slow, same) = batches(1.0), batches(2.0)
    assert slow == pytest.approx(2 * few, rel=0.1)
    assert same == many, "a prompt's kernel is another"


def test_a_batch_of_many_tokens_does_not_set_what_prompts_reach(tmp_path):
    """It runs their kernel, but waits for memory besides."""

    def prompt(size, slower):
        for name in ("decode-135m", "prefill-135m"):
            raw = json.loads((RESULTS / f"{name}.json").read_text())
            if name == "decode-135m":
                raw["batch"]["size"] = size
                raw["batch"]["seconds_per_step"] *= slower
            (tmp_path / f"{name}.json").write_text(json.dumps(raw))
        return next(row.modelled_s for row in cpu_rows(tmp_path, shape_config)[0] if "512 tokens" in row.name)

    assert prompt(8, 1.0) == prompt(FEW_TOKENS + 1, 1.0) == prompt(FEW_TOKENS + 1, 10.0)


def test_a_folder_without_what_calibrates_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no decode-135m.json"):
        cpu_rows(tmp_path, shape_config)
    (tmp_path / "decode-135m.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        cpu_rows(tmp_path, shape_config)
    (tmp_path / "decode-135m.json").write_text(json.dumps([1]))
    with pytest.raises(UsageError, match="not a bench's result"):
        cpu_rows(tmp_path, shape_config)
    (tmp_path / "decode-135m.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not JSON"):
        cpu_rows(tmp_path, shape_config)
    (tmp_path / "decode-135m.json").write_text('{"bench": "decode"}')
    with pytest.raises(UsageError, match="has no 'workload', as coterie bench writes it"):
        cpu_rows(tmp_path, shape_config)


@pytest.mark.parametrize("wrong", [[1], "x", None, True, {"a": 1}, -1, 0, 10**400])
@pytest.mark.parametrize(
    "place", [("batch", "size"), ("read_limit", "bytes_per_s"), ("workload",), ("workload", "shape")]
)
def test_a_result_with_a_value_that_is_none_is_refused_in_one_line(place, wrong, tmp_path):
    """Whatever a model of it may be told: numbers that could be one are."""
    for name in ("decode-135m", "prefill-135m"):
        (tmp_path / f"{name}.json").write_text((RESULTS / f"{name}.json").read_text())
    raw = json.loads((tmp_path / "decode-135m.json").read_text())
    holder = raw
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = wrong
    (tmp_path / "decode-135m.json").write_text(json.dumps(raw))
    said = ""
    try:
        cpu_rows(tmp_path, shape_config)
    except CoterieError as error:
        said = str(error)
    assert said.isprintable()
    assert said or isinstance(wrong, int)
