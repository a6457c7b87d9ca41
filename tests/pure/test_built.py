"""Native modules built from other sources than lie beside the package are refused in a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from coterie.core.built import ANYWAY, MODULES, SOURCES, check_sources, digest
from coterie.core.errors import UsageError
from coterie.devices import _clock
from coterie.kernels import _cpu

CODE = 'int f(int a) {\n  return a + 1;  // one more\n}\nconst char* at = "http://a";\n'


@pytest.fixture
def sources(tmp_path):
    for name in ("bindings.cpp", "kernels/add.cpp", "clock/clock.h"):
        file = tmp_path / "csrc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CODE)
    return tmp_path / "csrc"


def built(name: str, of: str | None) -> ModuleType:
    module = ModuleType(f"coterie.anywhere.{name}")
    if of is not None:
        module.__dict__["SOURCES"] = of
    return module


@pytest.mark.parametrize("module", [_cpu, _clock])
def test_what_is_in_use_was_built_from_what_is_here(module):
    assert digest(module.__name__.rpartition(".")[2]) == module.SOURCES


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("// one more", "// two, or so", True),
        ("  // one more", "", True),
        ("{\n  return", "{ return", True),
        ("a + 1", "a + 2", False),
        ("http://a", "http://b", False),
        ("return a", "returna", False),
    ],
)
def test_code_counts_and_comments_do_not(sources, before, after, same):
    file = sources / "kernels" / "add.cpp"
    clock, cpu = digest("_clock", sources), digest("_cpu", sources)
    file.write_text(CODE.replace(before, after, 1))
    assert file.read_text() != CODE
    assert (digest("_cpu", sources) == cpu) is same
    assert digest("_clock", sources) == clock  # not of its folders


def test_names_of_files_count(sources):
    before = digest("_cpu", sources)
    (sources / "kernels" / "add.cpp").rename(sources / "kernels" / "sub.cpp")
    assert digest("_cpu", sources) != before


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("of", [None, "", "0123"])
def test_other_sources_are_refused(sources, monkeypatch, name, of):
    monkeypatch.delenv(ANYWAY, raising=False)
    check_sources(built(name, digest(name, sources)), sources)
    with pytest.raises(UsageError, match=rf"\[{name}\] it was built from other code .* run `make setup`") as told:
        check_sources(built(name, of), sources)
    assert str(sources.parent) in str(told.value)
    monkeypatch.setenv(ANYWAY, "1")
    check_sources(built(name, of), sources)


def test_an_installed_package_has_no_sources_to_differ_from(tmp_path):
    check_sources(built("_cpu", "0123"), tmp_path / "csrc")


def test_a_command_says_it_in_a_line():
    code = (
        "from coterie.core import built; built.digest = lambda *_: 'other'; from coterie.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "demo"], capture_output=True, text=True, check=False, env=without_leave()
    )
    assert done.returncode == 2
    assert done.stderr.startswith("coterie: [_c")
    assert done.stderr.count("\n") == 1


def without_leave() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(SOURCES.parent, "src"))}
