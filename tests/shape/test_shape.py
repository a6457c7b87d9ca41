"""The project keeps its own rules: file and function lengths, docstrings, words, public names.

Knows nothing about what the code does.
"""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "coterie"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "csrc").rglob("*.[ch]*")), *sorted((ROOT / "demo").rglob("*.py"))]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 70

# Each exception has its reason.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_module_says_its_job_and_what_it_does_not_know(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert doc, f"{_id(path)} has no docstring"
    assert "nows nothing" in doc, f"{_id(path)} does not say what it knows nothing about"


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_files_stay_readable(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= MAX_FILE_LINES or _id(path) in LONG_FILES, f"{lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_functions_stay_readable(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            where = f"{_id(path)}:{node.name}"
            assert lines <= MAX_FUNCTION_LINES or where in LONG_FUNCTIONS, f"{where} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_public_functions_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    holders = [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
    for holder in holders:
        for node in holder.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                assert ast.get_docstring(node), f"{_id(path)}: {node.name} has no docstring"


def test_policy_has_no_imports_inside_functions() -> None:
    """Function-local imports hide arrows; only optional extras in devices/ and kernels/ may use them."""
    for path in MODULES:
        if path.parent.name in ("devices", "kernels"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
                assert not inner, f"{_id(path)}:{node.name} imports inside"


def test_only_bindings_include_nanobind() -> None:
    users = [p.name for p in (ROOT / "csrc").rglob("*") if p.is_file() and "nanobind" in p.read_text()]
    assert users == ["bindings.cpp"]


def test_no_large_or_generated_files_are_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.decode()
    if not listed:
        pytest.skip("not a git checkout")
    tracked = [ROOT / name for name in listed.split("\0") if name]
    large = [str(p) for p in tracked if p.exists() and p.stat().st_size > 3 * 2**20]
    assert not large
    weights = sum(p.stat().st_size for p in tracked if p.suffix in (".safetensors", ".npz") and p.exists())
    assert weights <= 24 * 2**20, "the demo's weights ship in at most 24 MB"
