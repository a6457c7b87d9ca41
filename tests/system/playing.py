"""The page's script in node: a document, a server that gives these answers, and a user who does this.

Knows nothing about what the page should show.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from coterie.server.events import encode

HTML = (files("coterie.server") / "page.html").read_text(encoding="utf-8")
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
EVIL = '<img src=x onerror="alert(1)">'


def play(folder: Path, answers: dict[str, list[dict]], does: list[list[str]]) -> dict:
    """Runs the page's script against these answers, does this (id, event, text), and says what is shown."""
    assert NODE is not None
    (folder / "page.html").write_text(HTML)
    (folder / "scene.json").write_text(json.dumps({"answers": answers, "does": does}))
    script = Path(__file__).with_name("page_in_node.js")
    command = [NODE, str(script), str(folder / "page.html"), str(folder / "scene.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    return {**found, "shown": {id: re.sub(" +", " ", text) for id, text in found["shown"].items()}}


def stream(*happened: tuple[str, dict]) -> dict:
    return {"body": b"".join(encode(what, facts, 1) for what, facts in happened).decode()}


def answered(*pieces: str, reason: str = "stop", done: bool = True, **more: object) -> dict:
    """An answer as it is streamed, in these pieces."""
    deltas = [{"delta": {"content": piece}} for piece in pieces]
    choices = [*deltas, *([{"delta": {}, "finish_reason": reason}] if done else [])]
    parts = [f"data: {json.dumps({'id': '1', 'model': 'bob', 'choices': [one]})}\n\n" for one in choices]
    return {"body": "".join([*parts, "data: [DONE]\n\n"] if done else parts), **more}
