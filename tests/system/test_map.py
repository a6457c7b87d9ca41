"""`coterie map`: sections of a model, a picture and a trace of one of them, and one sentence for every mistake."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from benchmarks import sections
from tests.system.commands import refused, run

from coterie.core.trace import read_trace
from coterie.dataflow import mapping


def test_a_layer_is_one_section_and_the_json_says_where_everything_is(tmp_path: Path) -> None:
    svg, trace = tmp_path / "layer.svg", tmp_path / "tiles.json"
    result = run(
        "map", "llama-2-7b", "--machine", "sn40l-socket", "--phase", "decode", "--json", "--draw", svg, "--trace", trace
    )
    assert result.exit_code == 0, result.output
    got = json.loads(result.stdout)
    assert got["launches"] == 34, "an embedding, 32 layers and a head, as the paper's figures have it"
    assert [row["times"] for row in got["sections"]] == [1, 32, 1]
    assert {b["kind"] for b in got["boundaries"]} == {"layer"}
    layout = got["layout"]
    for what, cells in (("pcus", layout["stage"]), ("pmus", layout["buffer"])):
        used = [tuple(cell) for part in cells for cell in part["cells"]]
        assert len(used) == len(set(used)) == layout[what] <= 1040
    assert svg.read_text().startswith("<svg")
    assert len(svg.read_text()) < 300_000
    read = read_trace(trace)
    assert len(read.lanes) > layout["stages"]
    end = max(piece.end_s for piece in read.slices)
    assert end == pytest.approx(layout["l2_s"] - layout["start_s"], rel=0.01)


def test_a_checkpoint_folder_is_mapped_too(folder: Path) -> None:
    result = run("map", folder / "ada", "--machine", "sn40l-socket", "--tokens", "32")
    assert result.exit_code == 0, result.output
    assert "boundaries between layers" in result.stdout
    assert "no section can deadlock" in result.stdout
    assert "launches" in result.stdout


def test_a_config_alone_is_mapped_as_its_folder_is(folder: Path, tmp_path: Path) -> None:
    """Weights and values of the type that it declares, bfloat16."""
    (tmp_path / "mine.json").write_text((folder / "ada" / "config.json").read_text())
    args = ("--machine", "sn40l-socket", "--tokens", "32", "--json")
    alone, whole = (json.loads(run("map", model, *args).stdout) for model in (tmp_path / "mine.json", folder / "ada"))
    assert [row["section"] for row in alone["sections"]] == [row["section"] for row in whole["sections"]]
    assert 0 < alone["launches"] <= whole["launches"]


def test_a_fifo_that_is_too_shallow_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a stage has several inputs each must hold what one firing takes."""
    monkeypatch.setattr(mapping, "depths", lambda flows, stages: [0] * len(flows))
    args = ("map", folder / "ada", "--machine", "sn40l-socket", "--tokens", "32")
    said = run(*args).stdout
    assert " may deadlock: fifo " in said
    assert "no section can deadlock" not in said
    found = [row["shallow_fifos"] for row in json.loads(run(*args, "--json").stdout)["sections"]]
    assert sum(map(len, found)) == said.count("may deadlock") > 0


def test_the_table_fits_80_columns(folder: Path) -> None:
    narrow = run("map", "llama-2-7b", "--machine", "sn40l-socket", "--phase", "decode").stdout
    assert "layers.0" in narrow
    assert "…" not in narrow


def test_a_png_needs_matplotlib_only(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    args = ("map", folder / "ada", "--machine", "sn40l-socket", "--tokens", "32")
    png = tmp_path / "layer.png"
    assert run(*args, "--draw", png).exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG")


def test_what_a_socket_has_no_room_for_is_said() -> None:
    words = ("map", "llama-2-70b", "--machine", "sn40l-socket", "--phase", "decode", "--tokens", 16, "--how", "stage")
    text = " ".join(run(*words).stdout.split())
    assert "a socket needs 128.48 GiB at once, 68.88 GiB more than hbm has; the times take all from hbm" in text
    assert "more than hbm has" not in run(*words[:3], "sn40l-node", *words[4:], "--tp", 8).stdout


def test_a_training_step_and_a_plan_of_memory(folder: Path) -> None:
    args = ("map", folder / "ada", "--machine", "sn40l-socket", "--tokens", "32", "--phase", "train")
    got = json.loads(run(*args, "--memory", "greedy", "--json").stdout)
    assert any(row["section"].endswith(".grad") for row in got["sections"])
    assert got["memory"]["peak_bytes"] < got["memory"]["unshared_bytes"]
    assert not got["memory"]["spilled"]
    assert "with shared addresses" in run(*args, "--memory", "paper").stdout


def test_a_decode_step_has_no_image_to_read() -> None:
    args = ("map", "llava-1.5-7b", "--machine", "sn40l-socket", "--phase", "decode", "--tokens", "10", "--json")
    sections = json.loads(run(*args).stdout)["sections"]
    assert [row["times"] for row in sections] == [1, 32, 1], "the text model alone"


def test_a_training_step_over_eight_sockets() -> None:
    args = ("map", "sparse-gpt-13b", "--machine", "sn40l-node", "--phase", "train", "--tp", "8", "--tokens", "256")
    result = run(*args, "--section", "layers.38.grad", "--json")
    assert result.exit_code == 0, result.output
    got = json.loads(result.stdout)
    assert sum(row["times"] for row in got["sections"]) == got["launches"] >= 2 * 42
    layer = got["layout"]
    assert [stage["unit"] for stage in layer["stage"]].count("link") == 2, "before each of its two blocks"
    assert layer["l0_s"] <= layer["l1_s"] <= layer["l2_s"] * (1 + 1e-9)


def test_mistakes_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    ada = folder / "ada"
    refused(run("map", "nobody"), "[nobody]", "neither a model of the zoo nor a folder", "llama-2-7b")
    refused(run("map", ada, "--machine", "dgx-h100"), "no grid of compute and memory units")
    refused(run("map", ada, "--how", "fast"), "there is no way 'fast' to cut a graph", "best")
    refused(run("map", ada, "--section", "layers.99"), "there is no section layers.99", "embed")
    refused(run("map", ada, "--orchestration", "nobody"), "use device or host")
    refused(run("map", ada, "--phase", "train", "--tp", "2"), "259 rows, which do not split over 2 ranks")
    refused(run("map", "monarch-example", "--phase", "train"), "draws no tokens", "language model")
    refused(run("map", "llama-2-7b", "--tp", "16"), "[--tp] 16 sockets", "sn40l-node has 8", "at most 8")
    refused(run("map", "flash-fft-conv-1m", "--tp", "8"), "none of its 97 ops can be split over 8 ranks", "on one")
    refused(run("map", "llava-1.5-7b", "--tokens", "10"), "--tokens", "has 10 tokens", "alone takes 576", "577")
    refused(run("map", ada, "--memory", "guess"), "there is no way 'guess' to spill", "greedy")
    text = (files("coterie.spec") / "machines" / "sn40l-socket.toml").read_text()
    near, below, _, _ = (f"[[tier]]{part}" for part in text.partition("[[link]]")[0].split("[[tier]]")[1:])
    alone = tmp_path / "alone.toml"
    alone.write_text(text.partition("[[tier]]")[0] + near + below)
    assert run("map", ada, "--machine", alone).exit_code == 0
    refused(run("map", ada, "--machine", alone, "--memory", "greedy"), "no memory below hbm", "leave it out")
    refused(run("map", ada, "--draw", "x.gif"), "a picture is .svg or .png")
    refused(run("map", ada, "--draw", "/no/such/folder/x.svg"), "cannot be written")


@pytest.mark.long
def test_the_page_of_sections_is_what_the_code_says() -> None:
    assert sections.PAGE.read_text(encoding="utf-8") == sections.page(), "run python -m benchmarks.sections"
