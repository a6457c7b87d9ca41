"""`coterie paper`, as a person uses it."""

from __future__ import annotations

import importlib
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from tests.system.commands import refused
from tests.system.commands import run as run_command

from coterie.plan.paper.exhibits import EXHIBITS

NUMBER = {"type": ["number", "null"]}
WORDS = {"type": "string", "minLength": 1}
SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["exhibit", "row", "published", "ours", "error", "kind", "method", "unit", "source", "note"],
        "additionalProperties": False,
        "properties": {
            "exhibit": WORDS,
            "row": WORDS,
            "published": NUMBER,
            "ours": NUMBER,
            "error": NUMBER,
            "kind": {"enum": ["given", "fitted", "predicted"]},
            "method": {"enum": ["closed form", "machine"]},
            "unit": WORDS,
            "source": WORDS,
            "note": {"type": "string"},
        },
    },
}
SOME = ("table-1", "figure-12", "figure-13")


def run(*args: object):
    return run_command("paper", *args)


def test_exhibits_made_side_by_side_are_those_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cpus in (2, 1):
        monkeypatch.setattr("coterie.cli.paper.allowed_cpus", lambda cpus=cpus: (cpus, ""))
        monkeypatch.setattr("coterie.plan.paper.exhibits._made", {})
        found.append((run(*SOME).stdout, run(*SOME, "--json").stdout))
    assert found[0] == found[1]
    assert found[0][0].count("Fitted constants") == 1


def test_json_is_a_list_of_rows() -> None:
    result = run(*SOME, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    Draft202012Validator(SCHEMA).validate(rows)
    assert list(dict.fromkeys(row["exhibit"] for row in rows)) == ["Table I", "Figure 12", "Figure 13"]
    for row in rows:
        if row["published"] is not None and row["ours"] is not None:
            assert row["error"] == pytest.approx(row["ours"] / row["published"] - 1)


def test_a_table_for_people_ends_with_errors_and_fitted_constants() -> None:
    result = run("table-1")
    assert result.exit_code == 0, result.output
    for words in ("Table I", "410.4", "closed form", "How far off", "Fitted constants", "Scale's traffic"):
        assert words in result.stdout
    assert "Figure 12" not in result.stdout


class _Page(HTMLParser):
    """Counts elements, and whatever the page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loads += [
            v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith(("#", "data:"))
        ]


def test_the_page_is_one_file_with_tables_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "paper.html"
    result = run(*SOME, "--html", path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.counts["svg"] >= 4
    assert page.counts["table"] == len(SOME) + 2
    assert not page.loads
    again = tmp_path / "again.html"
    run(*SOME, "--html", again, "--json")
    assert again.read_bytes() == path.read_bytes()


def test_an_unknown_exhibit_is_one_sentence() -> None:
    refused(run("figure-2"), "[figure-2]", "there is no such exhibit", *EXHIBITS)


def test_without_matplotlib_only_the_page_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    path = tmp_path / "paper.html"
    refused(run("table-1", "--html", path), "[--html]", "matplotlib", "'.[plan]'")
    assert not path.exists()
    assert run("table-1").exit_code == 0


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    refused(run("table-1", "--html", tmp_path / "no" / "paper.html"), "[--html]", "cannot be written")
