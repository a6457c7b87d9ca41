"""The project keeps its own rules: file and function lengths, docstrings, imports, what is tracked.

Knows nothing about what the code does.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from benchmarks import table

import coterie

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "src" / "coterie").rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "csrc").rglob("*.[ch]*")), *sorted((ROOT / "demo").rglob("*.py"))]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 70

GPU = ("coterie.kernels.triton", "coterie.devices.cuda.")  # need the extra cuda
WAY_TO_A_GPU = "coterie.devices.cuda.gpu"  # does not, and says so

# Each exception has its reason.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions() -> Iterator[tuple[Path, Function]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield path, node


def test_modules_say_their_job_and_what_they_do_not_know() -> None:
    docs = {name_of(path): ast.get_docstring(ast.parse(path.read_text())) or "" for path in MODULES}
    assert not [name for name, doc in docs.items() if "nows nothing" not in doc]


def test_files_stay_readable() -> None:
    lines = {name_of(path): path.read_text().count("\n") for path in SOURCES}
    assert not {name: n for name, n in lines.items() if n > MAX_FILE_LINES and name not in LONG_FILES}


def test_functions_stay_readable() -> None:
    lengths = {f"{name_of(p)}:{f.name}": (f.end_lineno or f.lineno) - f.lineno + 1 for p, f in functions()}
    assert not {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES and name not in LONG_FUNCTIONS}


def test_public_names_have_docstrings() -> None:
    missing = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        holders = [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
        nodes = [n for holder in holders for n in holder.body if isinstance(n, Function | ast.ClassDef)]
        bare = [n.name for n in nodes if not n.name.startswith("_") and not ast.get_docstring(n)]
        missing += [f"{name_of(path)}: {name}" for name in bare]
    assert not missing


def test_no_imports_hide_in_functions() -> None:
    """Function-local imports hide arrows; only optional extras in devices/ and kernels/ may use them."""
    hidden = [
        f"{name_of(path)}:{function.name}"
        for path, function in functions()
        if path.parent.name != "kernels"
        and "devices" not in path.parts
        and any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(function))
    ]
    assert not hidden


@cache
def bound_in(path: Path) -> set[str]:
    """Names that a module has, as far as its text says; "*" where it takes all of another's."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@cache
def source_of(module: str, folder: Path) -> Path | None:
    """The file or the package of one of our modules; those of a folder of tests may be named by themselves."""
    root = ROOT / "src" if module.startswith("coterie") else ROOT
    places = [base / module.replace(".", "/") for base in (folder, root)]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def unknown_imports(path: Path) -> list[str]:
    """What a file asks for of our modules that these do not have; those with a _ before their names are compiled."""
    unknown = []
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
            continue
        source = source_of(node.module, path.parent)
        has = {"*"} if source is None else bound_in(source)
        names = [alias.name for alias in node.names if "*" not in has and alias.name not in has]
        names = [name for name in names if not source_of(f"{node.module}.{name}", path.parent)]
        unknown += [f"{name_of(path)}: {name}" for name in names if not name.startswith("_")]
    return unknown


def test_no_two_test_files_have_one_name() -> None:
    """Their folders are no packages, so pytest would find the first where the second is meant."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, files in names.items() if files > 1] == []


def test_what_tests_and_benches_import_is_there() -> None:
    """Else a name that was moved is missed only where all tests are collected, which takes minutes."""
    asking = [*sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
    assert not [unknown for path in asking for unknown in unknown_imports(path)]


def test_the_base_install_needs_neither_torch_nor_triton() -> None:
    """Every module but the GPU's own is imported where these two are missing, and none asks for them."""
    names = [".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names if name == WAY_TO_A_GPU or not name.startswith(GPU)]
    base = [name for name in names if "__main__" not in name]
    code = f"""
import sys, importlib
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton"):
            raise SystemExit(f"somebody imports {{name}}")
sys.meta_path.insert(0, Absent())
for name in {base}:
    importlib.import_module(name)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_public_face_is_small_and_real() -> None:
    assert len(coterie.__all__) <= 12
    assert all(hasattr(coterie, name) for name in coterie.__all__)
    assert not hasattr(coterie, "nothing")


def test_only_bindings_include_nanobind() -> None:
    """One file a module: the kernels', and the modelled clock's."""
    csrc = ROOT / "csrc"
    users = {str(p.relative_to(csrc)) for p in csrc.rglob("*") if p.is_file() and "nanobind" in p.read_text()}
    assert users == {"bindings.cpp", "clock/bindings.cpp"}


def test_every_dependency_has_its_reason_and_its_pin() -> None:
    """docs/dependencies.md has a row for each package that pyproject.toml names, and for no other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    asked += [one for extra in extras.values() for one in extra if not one.startswith("coterie[")]
    names = {re.split(r"[=<>;\s]", one)[0] for one in asked}
    rows = re.findall(r"^\| ([a-z][^|]*) \|", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE)
    assert {name for row in rows[1:] for name in row.split(", ")} == names
    loose = {one for one in asked if "==" not in one}
    assert loose == {"cmake>=3.25", "ninja>=1.11"}, "each of any version that builds; all else is pinned"


def test_nothing_large_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.decode()
    if not listed:
        pytest.skip("not a git checkout")
    tracked = [path for name in listed.split("\0") if name and (path := ROOT / name).exists()]
    assert not [str(p) for p in tracked if p.stat().st_size > 3 * 2**20]
    weights = sum(p.stat().st_size for p in tracked if p.suffix in (".safetensors", ".npz"))
    assert weights <= 24_000_000, "the demo's weights ship in at most 24 MB"


def test_the_readme_and_the_page_show_the_stored_speeds() -> None:
    for results in table.machines().values():
        kinds = [result.get("bench") for result in results.values()]
        assert {"decode", "prefill", "switch", "fusion"} <= set(kinds)
    assert f"{table.BEGIN}{table.headlines()}\n{table.END}" in table.README.read_text(), (
        "run python -m benchmarks.table"
    )
    assert table.PAGE.read_text() == table.page(), "run python -m benchmarks.table"
