"""Every command in the README is run, and its Python too. What cannot run inside a test is checked to exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.serving import address_of

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    joined = "\n".join(blocks("console")).replace("\\\n", " ")
    return [line[2:].split("  #")[0].strip() for line in joined.splitlines() if line.startswith("$ ")]


QUICK = [c for c in commands() if c.startswith("coterie ") and not c.startswith("coterie serve")]


def test_the_readme_has_commands_of_every_kind() -> None:
    kinds = {command.split()[0] for command in commands()}
    assert kinds == {"make", "coterie", "curl"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the commands name, where what they write is not left behind."""
    for name in ("src", "examples"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    return tmp_path


@pytest.mark.parametrize("command", QUICK)
def test_commands_run(command: str, checkout: Path) -> None:
    got = subprocess.run(
        command, shell=True, cwd=checkout, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert got.returncode == 0, got.stderr
    assert got.stdout.strip()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in commands():
        if command.startswith("make "):
            target = command.split()[1]
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("code", [*blocks("python"), *blocks("python", (ROOT / "docs" / "server.md").read_text())])
def test_python_runs(code: str) -> None:
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert got.returncode == 0, got.stderr


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where `coterie serve demo` answers, as `make serve` starts it but for the port."""
    command = ["coterie", "serve", "demo", "--port", "0"]
    server = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        yield address_of(server).removeprefix("http://")
    finally:
        server.terminate()
        with server:
            said = server.stdout.read() if server.stdout else ""
    assert "curl" in said


def test_curl_commands_answer(address: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    for command in commands():
        if command.startswith("curl "):
            here = command.replace("127.0.0.1:8000", address)
            got = subprocess.run(here, shell=True, capture_output=True, text=True, check=False)
            assert got.returncode == 0, got.stderr
            assert '"object"' in got.stdout, got.stdout
