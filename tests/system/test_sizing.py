"""docs/sizing.md: its commands are run, and the numbers of machines that it shows are those that come out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.system.commands import run

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/sizing.md").read_text()
COMMANDS = [line[2:] for line in TEXT.replace("\\\n", " ").splitlines() if line.startswith("$ coterie")]


def counts(text: str) -> list[tuple[str, str]]:
    """Machine and number of each row of its tables."""
    return re.findall(r"^ (\S+) +(\d+|none) +(?:[\d.]+ m?s|-)", text, re.MULTILINE)


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_what_it_shows_comes_out(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    words = command.split()[1:]
    result = run(*words)
    assert result.exit_code == 0, result.output
    if words[0] == "plan":
        shown = counts("\n".join(re.findall(r"^```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)))
        assert len(shown) == 10
        assert counts(result.stdout) == shown
