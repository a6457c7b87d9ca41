"""`--trace FILE`: what ran when, from the command line to a picture."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from tests.system.commands import run

from coterie.core.trace import Slice, Trace, read_trace, write_trace
from coterie.core.trace_svg import render

SVG = "{http://www.w3.org/2000/svg}"


def test_run_writes_a_trace_and_trace_draws_it(composition: Path, tmp_path: Path) -> None:
    file, picture = tmp_path / "trace.json", tmp_path / "trace.svg"
    asked = run("run", composition, "for ada", "for bob", "--max-tokens", "3", "--json", "--trace", file)
    assert asked.exit_code == 0, asked.output
    assert f"in {file}" in asked.stderr
    json.loads(asked.stdout)
    got = read_trace(file)
    assert set(got.lanes) == {"compute", "disk->dram"}
    assert got.notes == {"device": "cpu", "synthetic_tokens": 0, "dropped": 0}
    assert [a.name for a in sorted(got.asyncs, key=lambda a: a.start_s) if a.kind == "request"] == ["ada", "bob"]
    assert {s.name.split()[0] for s in got.slices} == {"ada", "bob"}
    assert "ada layers.0" in {s.name for s in got.slices}
    shown = run("trace", file, "--svg", picture)
    assert shown.exit_code == 0, shown.output
    assert "disk->dram" in shown.stdout
    drawn = ElementTree.parse(picture).getroot()
    assert len(drawn.findall(f"{SVG}g")) == len(got.slices)


def test_a_trace_comes_back_as_it_was_written(tmp_path: Path) -> None:
    slices = [
        Slice("compute", "step", "a & <b>", 5.0, 5.5, {"tokens": 3}),
        Slice("disk->dram", "transfer", "b", 5.1, 5.2),
    ]
    write_trace(tmp_path / "t.json", Trace(slices, (), {"dropped": 0}))
    back = read_trace(tmp_path / "t.json")
    assert [(s.lane, s.name, round(s.start_s, 6), round(s.end_s, 6), s.args) for s in back.slices] == [
        ("compute", "a & <b>", 0.0, 0.5, {"tokens": 3}),
        ("disk->dram", "b", 0.1, 0.2, {}),
    ]
    part = ElementTree.fromstring(render(back, 0.3, 0.4, "a title"))
    assert [g.find(f"{SVG}title").text for g in part.findall(f"{SVG}g")] == ["a & <b>: 500 ms"]


def test_mistakes_are_sentences(tmp_path: Path, composition: Path) -> None:
    (tmp_path / "no.json").write_text('{"traceEvents": [{"ph": "X"}]}')
    for args, words in (
        (("trace", tmp_path / "no.json"), "is no trace of ours"),
        (("trace", tmp_path / "absent.json"), "cannot be read"),
        (
            ("run", composition, "for ada", "--max-tokens", "1", "--trace", tmp_path / "no" / "t.json"),
            "cannot be written",
        ),
    ):
        result = run(*args)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
