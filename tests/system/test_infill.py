"""Code that is filled in: by an expert that says what stands between, in the marks that its tokenizer has."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.system.scripted import write_scripted
from tests.system.serving import served
from tests.system.tiny import write_expert

from coterie.api import Coterie, Message, Query
from coterie.checkpoint.infill import FAMILIES, infill_marks

MIDDLE = ["return ", "a + b"]
BEFORE, BEHIND = "def add(a, b):\n    ", "\n\nprint(add(1, 2))"


@pytest.mark.parametrize("marks", FAMILIES)
def test_a_family_is_known_by_its_marks(marks):
    ids = {mark: number for number, mark in enumerate((marks.prefix, marks.suffix, marks.middle))}
    assert infill_marks(ids.get) == marks
    assert marks.ends(ids.get) == (0, 1, 2)
    assert marks.prompt("a", "b") == f"{marks.prefix}a{marks.suffix}b{marks.middle}"
    del ids[marks.suffix]
    assert infill_marks(ids.get) is None


@pytest.mark.parametrize(
    "prompt",
    [
        "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
        "<fim_prefix>a<fim_suffix>b<fim_middle>",
        "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>",
    ],
)
def test_a_prompt_is_as_its_family_was_trained_on_it(prompt: str) -> None:
    marks = infill_marks(lambda mark: 1 if mark in prompt else None)
    assert marks is not None
    assert marks.prompt("a", "b") == prompt


@pytest.mark.parametrize("mark", ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"])
def test_what_is_filled_in_ends_at_padding_and_at_another_file(mark: str) -> None:
    assert FAMILIES[0].ends({mark: 7}.get) == (7,)


def test_what_is_filled_in_ends_at_a_mark(tmp_path: Path) -> None:
    """Each piece is what comes after the one before it, so the middle comes behind its mark, and then padding."""
    marks = FAMILIES[0]
    around = [marks.prefix, marks.suffix, marks.middle, "<|fim_pad|>"]
    write_scripted(tmp_path / "coder", [*around[:3], *MIDDLE, around[3], "more"], "{{ messages[0].content }}", around)
    write_expert(tmp_path / "plain", 1)
    with served(Coterie.open(tmp_path)) as url:
        body = {"model": "coder", "prompt": BEFORE, "suffix": BEHIND, "max_tokens": 9}
        got = httpx.post(f"{url}/v1/completions", json=body).json()
        streamed = httpx.post(f"{url}/v1/completions", json={**body, "stream": True, "echo": True}).text
    assert (got["choices"][0]["text"], got["choices"][0]["finish_reason"]) == ("".join(MIDDLE), "stop")
    assert got["usage"]["prompt_tokens"] == 3 + len(BEFORE) + len(BEHIND)
    assert '"finish_reason": "stop"' in streamed
    assert "more" not in streamed


def test_a_router_sends_what_is_to_be_filled_in_to_an_expert_with_marks(tmp_path: Path) -> None:
    marks = FAMILIES[1]
    around = [marks.prefix, marks.suffix, marks.middle]
    write_scripted(tmp_path / "coder", [*around, *MIDDLE], "{{ messages[0].content }}", around)
    write_expert(tmp_path / "plain", 1)
    experts = "".join(f'[[expert]]\nname = "{name}"\ncheckpoint = "{name}"\n' for name in ("plain", "coder"))
    rule = '[[router.rule]]\nexpert = "plain"\nkeywords = ["add"]\n'
    file = tmp_path / "composition.toml"
    file.write_text(f'name = "two"\n[router]\nkind = "rules"\nfallback = "plain"\n{rule}{experts}')
    with Coterie.open(str(file)) as coterie:
        asked = Query((Message("user", BEFORE),), raw=True, max_tokens=9)
        assert coterie.route(asked).expert == "plain"
        got = coterie.ask(Query((Message("user", BEFORE),), raw=True, max_tokens=9, suffix=BEHIND))
    assert (got.expert, got.text) == ("coder", "".join(MIDDLE))
