"""Coterie's commands, with the modules in which a simulation spends its time compiled by mypyc.

The same source and the same answers, to the bit, in two thirds of the time.

    python -m benchmarks.compiled simulate samba-coe-150 --machine sn40l-node --rate 20 --requests 100000 --steps 8

The first time, and after changes, a copy is made in build/compiled: a minute of two cores. Needs mypy, setuptools and a
C compiler. Knows nothing about what the modules do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE, FOLDER = ROOT / "src" / "coterie", ROOT / "build" / "compiled"
MODULES = {
    "devices": ("modelled", "modelled_event", "modelled_exe", "modelled_tokens"),
    "engine": (
        "arrivals", "batch", "batches", "engine", "kv", "log", "metrics", "queue", "routing", "runner", "scheduler",
        "sequence", "timeline",
    ),
    "memory": ("cache", "evict", "rows", "slab", "split", "tiers", "transfer", "uses"),
    "plan": ("simulate",),
}  # fmt: skip
# What need not be installed, or is too large to be looked through.
MYPY = "[mypy]\nignore_missing_imports = True\nfollow_imports = silent\n" + "".join(
    f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "transformers", "triton")
)
SETUP = """import sys
from mypyc.build import mypycify
from setuptools import setup
made = mypycify(["--config-file", "mypy.ini", *sys.argv.pop().split()], multi_file=True)
setup(name="compiled", packages=[], ext_modules=made)
"""


def make(folder: Path = FOLDER) -> None:
    """Copy the package into a folder, and compile it there. Raises SystemExit where that fails."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCE, folder / "coterie", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "mypy.ini").write_text(MYPY)
    files = " ".join(f"coterie/{part}/{name}.py" for part, names in MODULES.items() for name in names)
    command = [sys.executable, "-c", SETUP, "-q", "build_ext", "--inplace", f"--parallel={os.cpu_count() or 1}", files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(folder)
        raise SystemExit(f"compiling failed; install mypy, setuptools and a C compiler\n{done.stderr[-2000:]}")


def is_made(folder: Path = FOLDER) -> bool:
    """Whether a compiled copy is there, and no older than the sources."""
    copied = folder / "mypy.ini"
    return copied.is_file() and all(file.stat().st_mtime < copied.stat().st_mtime for file in SOURCE.rglob("*.py"))


def main(arguments: Sequence[str], folder: Path = FOLDER) -> None:
    """The command line of the compiled copy."""
    if not is_made(folder):
        print(f"compiling into {folder} ...", file=sys.stderr)
        make(folder)
    # An editable install finds the package before any path does.
    sys.meta_path = [finder for finder in sys.meta_path if not type(finder).__name__.startswith("ScikitBuild")]
    sys.path.insert(0, str(folder))
    sys.argv = ["coterie", *arguments]
    import_module("coterie.cli.main").main()


if __name__ == "__main__":
    main(sys.argv[1:])
