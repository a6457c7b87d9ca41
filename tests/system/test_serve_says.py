"""What `coterie serve` prints when it begins: a question that is worth asking what it serves."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from coterie.api import Coterie
from coterie.cli.serve import EXAMPLE, OF_DEMO, _say, example_of
from coterie.composition.composition import load_composition

ROOT = Path(__file__).resolve().parents[2]


def test_the_question_is_one_that_is_answered_there(folder: Path, composition: Path) -> None:
    assert example_of(load_composition("demo")) == OF_DEMO
    assert example_of(load_composition(folder)) == example_of(load_composition(composition)) == EXAMPLE
    knn = load_composition(ROOT / "examples" / "knn.toml")
    first = next(one for one in knn.router.examples if one.expert != knn.router.fallback)
    assert example_of(knn) == first.text


def test_the_line_asks_who_chooses_or_else_an_expert(
    folder: Path, composition: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for what, model in ((composition, "four"), (folder, "ada"), (folder / "ada", "ada")):
        with Coterie.open(what) as coterie:
            _say(coterie, "127.0.0.1", 8000, ["key"], [])
        (line,) = re.findall("^try: (.*)$", capsys.readouterr().out, re.MULTILINE)
        words = shlex.split(line)
        assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v1/chat/completions"]
        assert json.loads(words[-1]) == {"model": model, "messages": [{"role": "user", "content": EXAMPLE}]}
        assert "Authorization: Bearer $COTERIE_API_KEY" in words
