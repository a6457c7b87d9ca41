"""A disk that is full: every command that writes says so in one sentence, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.system.commands import refused, run
from tests.system.tiny import write_adapter_of, write_expert

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
MAP = ("map", "llama-2-7b", "--machine", "sn40l-socket", "--phase", "decode")
SIMULATE = ("simulate", "samba-coe-150", "--machine", "sn40l-node", "--rate", "20", "--requests", "5")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_expert(tmp_path / "base", 1)


@needs_full
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (MAP, "--trace"),
        (("paper", "table-1"), "--html"),
        (SIMULATE, "--html"),
        (SIMULATE, "--trace"),
    ],
)
def test_a_file_that_finds_no_room(words: tuple[str, ...], option: str) -> None:
    refused(run(*words, option, FULL), f"[{option}] {FULL} cannot be written: No space left on device", "another file")


@needs_full
def test_the_trace_of_a_run_and_its_picture(base: Path, tmp_path: Path) -> None:
    words = ("run", base, "--raw", "--max-tokens", "2", "hello")
    refused(run(*words, "--trace", FULL), f"[--trace] {FULL} cannot be written: No space left on device")
    assert run(*words, "--trace", tmp_path / "trace.json").exit_code == 0
    refused(run("trace", tmp_path / "trace.json", "--svg", FULL), f"[--svg] {FULL} cannot be written: No space left")
    (tmp_path / "full.svg").symlink_to(FULL)
    refused(run(*MAP, "--draw", tmp_path / "full.svg"), "cannot be written: No space left on device")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("what", ["quantize", "delta", "merge"])
def test_a_folder_that_finds_no_room(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int
) -> None:
    """As late as can be: the weights are written, and do not reach the disk."""
    tuned = write_expert(tmp_path / "tuned", 2)
    adapter = write_adapter_of(base, tmp_path / "adapter", ("q_proj",), 3)
    words = {
        "quantize": ("quantize", base),
        "delta": ("delta", base, tuned),
        "merge": ("merge", base, adapter),
    }[what]

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(tmp_path.rglob("*"))
    refused(run(*words, tmp_path / "new" / "out"), f"[{tmp_path / 'new' / 'out'}]", "can be had; free some room")
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.undo()
    assert run(*words, tmp_path / "new" / "out").exit_code == 0
