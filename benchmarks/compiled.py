"""Runs Coterie's commands with the hot modules of a simulation compiled by mypyc.

The same source and bit-identical results, in about half of the time.

    python -m benchmarks.compiled simulate samba-coe-150 --machine sn40l-node --rate 20 --requests 100000 --steps 8

At first use, and after changes, it makes a compiled copy in build/compiled, in a minute on two cores. Needs mypy,
setuptools and a C compiler.
Knows nothing about what the modules do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.constructors import with_constructors

ROOT = Path(__file__).resolve().parent.parent
SOURCE, FOLDER = ROOT / "src" / "coterie", ROOT / "build" / "compiled"
# Not core/shapes: graph/closed.py passes traced numbers as a step's sizes, which a compiled class would reject.
MODULES = {
    "": ("device",),
    "checkpoint": ("layout",),
    "composition": ("router",),
    "composition/routers": ("given",),
    "devices/modelled": ("device", "event", "exe", "tokens", "transfer"),
    "engine": (
        "admission", "batch", "batcher", "engine", "expert_control", "groups", "kv", "loads", "log", "metrics",
        "policy", "prefix", "queue", "request", "reuse", "routing", "runner", "scheduler", "sequence", "served",
        "stop_text", "timeline",
    ),
    "memory": ("cache", "evict", "pins", "residency", "rows", "slab", "split", "tiers", "transfer", "uses", "victims"),
    "plan": ("simulate",),
}  # fmt: skip
# Not compiled, but with a subclass of a compiled class, whose fields it would hide by its own __slots__.
HEIRS = (Path("coterie", "devices", "real", "lanes.py"),)
# Packages that may be missing, or are too large to be analysed.
MYPY = "[mypy]\nignore_missing_imports = True\nfollow_imports = silent\n" + "".join(
    f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "transformers", "triton")
)
MAKERS = (Path(__file__), ROOT / "benchmarks" / "constructors.py")  # changes to these outdate a copy too
STAMP = "made.json"  # written last: what the copy was made from
SETUP = """import sys
from mypyc.build import mypycify
from setuptools import setup
made = mypycify(["--config-file", "mypy.ini", *sys.argv.pop().split()], multi_file=True)
setup(name="compiled", packages=[], ext_modules=made)
"""


def make(folder: Path = FOLDER) -> None:
    """Copy the package into a folder and compile it there. Raises SystemExit on failure, and then leaves nothing."""
    natives = _natives()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        copy = Path(name) / folder.name
        shutil.copytree(SOURCE, copy / "coterie", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        for part, file in natives.items():
            shutil.copy(file, copy / "coterie" / part)
        (copy / "mypy.ini").write_text(MYPY)
        files = [Path("coterie", part, f"{name}.py") for part, names in MODULES.items() for name in names]
        _write_constructors([copy / file for file in (*files, *HEIRS)])
        command = [sys.executable, "-c", SETUP, "-q", "build_ext", "--inplace", f"--parallel={os.cpu_count() or 1}"]
        done = subprocess.run(
            [*command, " ".join(map(str, files))], cwd=copy, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = (done.stdout + done.stderr)[-2000:]
            raise SystemExit(f"compiling failed; install mypy, setuptools and a C compiler\n{said}")
        (copy / STAMP).write_text(json.dumps(_made_of(natives.values())))
        copy.rename(folder)


def _write_constructors(files: Iterable[Path]) -> None:
    made = with_constructors({str(file): file.read_text() for file in files})
    for name, source in made.items():
        Path(name).write_text(source)


def is_made(folder: Path = FOLDER) -> bool:
    """Whether there is an up-to-date compiled copy for this Python."""
    stamp = folder / STAMP
    if not stamp.is_file():
        return False
    made = json.loads(stamp.read_text())
    files = [file for file in SOURCE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    natives = [Path(file) for file in made["natives"]]
    age = stamp.stat().st_mtime
    return made == _made_of(natives) and all(
        f.is_file() and f.stat().st_mtime < age for f in [*files, *natives, *MAKERS]
    )


def _made_of(natives: Iterable[Path]) -> dict[str, object]:
    modules = {part: list(names) for part, names in MODULES.items()}
    return {"python": sys.implementation.cache_tag, "modules": modules, "natives": [str(file) for file in natives]}


def _natives() -> dict[str, Path]:
    """The package's native modules, by the folder they belong in; an editable install keeps them elsewhere."""
    code = "from coterie.kernels import _cpu\nfrom coterie.devices import _clock\nprint(_cpu.__file__, _clock.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the package's native modules cannot be imported; run make setup-dev\n{done.stderr[-500:]}")
    return dict(zip(("kernels", "devices"), map(Path, done.stdout.split()), strict=True))


def main(arguments: Sequence[str], folder: Path = FOLDER) -> None:
    """Run the command line of the compiled copy."""
    if not is_made(folder):
        print(f"compiling into {folder} ...", file=sys.stderr)
        make(folder)
    # An editable install's finder would take precedence over sys.path.
    sys.meta_path = [finder for finder in sys.meta_path if not type(finder).__name__.startswith("ScikitBuild")]
    sys.path.insert(0, str(folder))
    sys.argv = ["coterie", *arguments]
    import_module("coterie.cli.main").main()


if __name__ == "__main__":
    main(sys.argv[1:])
