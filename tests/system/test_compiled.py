"""The compiled copy of the package: it is what runs, and it answers as the sources do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import compiled
from tests.system.commands import MAIN

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("simulate", "samba-coe-150", "--machine", "sn40l-node", "--machine", "dgx-h100", "--policy", "coterie",
         "--policy", "fcfs", "--rate", "20", "--mix", "zipf", "--requests", "40", "--steps", "8", "--json")  # fmt: skip

# Costs are worked out once, on traced sizes: a class that takes only ints in their place has each counted anew.
TRACED = """import sys
sys.meta_path = [finder for finder in sys.meta_path if not type(finder).__name__.startswith("ScikitBuild")]
sys.path.insert(0, sys.argv[1])
from coterie.core.shapes import Sizes
from coterie.devices.modelled import exe as modelled_exe
from coterie.graph.closed import ClosedCost
from coterie.graph.compile import compile_graph
from coterie.models.zoo import zoo_graph
assert modelled_exe.__file__.startswith(sys.argv[1]), modelled_exe.__file__
program = compile_graph(zoo_graph("llama-2-7b"), "section")
costs = [ClosedCost(program, region) for region in program.regions[:3]]
for cost in costs:
    cost.of(Sizes.decode(1, 64))
assert not any(cost.is_counted for cost in costs)
"""


def test_every_module_that_is_compiled_exists() -> None:
    for part, names in compiled.MODULES.items():
        for name in names:
            assert (compiled.SOURCE / part / f"{name}.py").is_file(), f"{part}/{name}"


def test_a_copy_is_made_anew_after_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder, native, maker = (tmp_path / name for name in ("source", "made", "_cpu.so", "constructors.py"))
    monkeypatch.setattr(compiled, "SOURCE", source)
    monkeypatch.setattr(compiled, "MAKERS", (maker,))
    source.mkdir(), folder.mkdir()
    files = [source / "a.py", source / "machine.toml", native, maker]
    for file in files:
        file.touch()
        os.utime(file, (1, 1))
    assert not compiled.is_made(folder)
    (folder / "mypy.ini").touch()
    assert not compiled.is_made(folder), "compiling was cut off"
    (folder / compiled.STAMP).write_text(json.dumps(compiled._made_of([native])))
    assert compiled.is_made(folder)
    for file in files:
        os.utime(file, (2**33, 2**33))
        assert not compiled.is_made(folder), file
        os.utime(file, (1, 1))
    monkeypatch.setattr(compiled, "MODULES", {"engine": ("engine",)})
    assert not compiled.is_made(folder)


def test_what_cannot_be_compiled_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "SETUP", "raise ImportError('no compiler')")
    with pytest.raises(SystemExit, match=r"install mypy, setuptools and a C compiler\n(.|\n)*no compiler"):
        compiled.make(tmp_path / "made")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_compiled_copy_simulates_as_the_sources_do(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    compiled.make(folder)
    assert len(list((folder / "coterie" / "engine").glob("*.so"))) == len(compiled.MODULES["engine"])
    assert compiled.is_made(folder)
    # Where the engine and the clock came from, said at the end.
    ours = "import atexit, sys; from pathlib import Path; from benchmarks.compiled import main\n"
    ours += "said = lambda: [sys.modules[f'coterie.{{n}}'].__file__ for n in ('engine.engine', 'devices._clock')]\n"
    ours += "atexit.register(lambda: print(*said(), file=sys.stderr)); main(sys.argv[1:], Path({!r}))"
    found = []
    for code in (ours.format(str(folder)), MAIN):
        done = subprocess.run([sys.executable, "-c", code, *WORDS], cwd=ROOT, capture_output=True, check=True)
        if code != MAIN:
            files = done.stderr.decode().split()[-2:]
            assert all(file.startswith(str(folder)) and file.endswith(".so") for file in files), files
        found.append([{**row, "wall_s": 0} for row in json.loads(done.stdout)["rows"]])
    assert found[0] == found[1]
    assert len(found[0]) == 4
    subprocess.run([sys.executable, "-c", TRACED, str(folder)], cwd=folder, check=True)
    words = ("run", "demo", "What is 3 + 4?", "--max-tokens", "4")  # on a device whose events are not compiled
    subprocess.run([sys.executable, "-c", ours.format(str(folder)), *words], cwd=ROOT, check=True)
