"""Native modules built from other sources than lie beside the package are refused in a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from coterie.core.built import ANYWAY, MODULES, SOURCES, check_sources, digest, not_built
from coterie.core.errors import UsageError
from coterie.devices import _clock
from coterie.kernels import _cpu

CODE = 'int f(int a) {\n  return a + 1;  // one more\n}\nconst char* at = "http://a";\n'
BUILD = "set(FLAGS -O3 -ffp-contract=off)  # so that batches do not differ\nif(COTERIE_TESTS)\n  add(t.cpp)\nendif()\n"


@pytest.fixture
def sources(tmp_path):
    for name in ("bindings.cpp", "kernels/add.cpp", "clock/clock.h"):
        file = tmp_path / "csrc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CODE)
    (tmp_path / "CMakeLists.txt").write_text(BUILD)
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


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("-O3", "-O2", False),
        (" -ffp-contract=off", "", False),
        ("# so that", "# lest", True),
        (")  #", ")\n\n#", True),
        ("t.cpp", "t.cpp u.cpp", True),
        ("COTERIE_TESTS", "COTERIE_PYTHON", False),
    ],
)
def test_how_it_is_compiled_counts_and_how_tests_are_does_not(sources, before, after, same):
    digests = [digest(name, sources) for name in MODULES]
    (sources.parent / "CMakeLists.txt").write_text(BUILD.replace(before, after, 1))
    assert [digest(name, sources) == was for name, was in zip(MODULES, digests, strict=True)] == [same] * len(MODULES)


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


def ended_with_a_line(code: str, begin: str) -> str:
    code += "; from coterie.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "demo"], capture_output=True, text=True, check=False, env=without_leave()
    )
    assert done.returncode == 2
    assert done.stderr.startswith(begin)
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_command_says_it_in_a_line():
    ended_with_a_line("from coterie.core import built; built.digest = lambda *_: 'other'", "coterie: [_c")


def test_what_was_never_built_is_said_in_a_line():
    said = ended_with_a_line("import sys; sys.modules['coterie.kernels._cpu'] = None", "coterie: [_cpu] the native")
    assert f"run `make setup`, or `pip install -e .`, in {SOURCES.parent}" in said


def test_an_installed_package_is_to_be_installed_again(tmp_path):
    assert str(not_built("_cpu", ImportError("no"), tmp_path / "csrc")).endswith(
        "; install Coterie again with this Python"
    )


def without_leave() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(SOURCES.parent, "src"))}
