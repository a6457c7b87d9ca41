"""Detects native modules that were built from other sources than those next to the package.

The build embeds a digest of the sources in each module; importers compare it with the checkout, since an editable
install may have been updated without a rebuild. A digest instead of a version number, because any line may change
behaviour: negative windows came to the attention kernels without a new operand. CMakeLists.txt is included, since
flags such as -ffp-contract=off affect results.
Knows nothing about what is computed. Runs during the build, so it uses the standard library only.
"""

from __future__ import annotations

import os
import re
import sys
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

from coterie.core.errors import UsageError

SOURCES = Path(__file__).resolve().parents[3] / "csrc"  # exists only in a checkout or an editable install
MODULES = {"_cpu": (".", "kernels"), "_clock": ("clock",)}  # source folders of each module
_BUILD = "run `make setup`, or `pip install -e .`,"
ANYWAY = "COTERIE_OTHER_KERNELS"  # environment variable that disables the check, for comparing builds or development

_COMMENT = re.compile(rb'//[^\n"]*$', re.MULTILINE)  # with a quote in it, it may be part of a string: kept
_BUILD_COMMENT = re.compile(rb'#[^\n"]*$', re.MULTILINE)
_BUILD_OF_TESTS = re.compile(rb"^if\(COTERIE_TESTS\)$.*?^endif\(\)$", re.MULTILINE | re.DOTALL)  # affects no module


def digest(module: str, sources: Path = SOURCES) -> str:
    """A digest of the code in csrc/ that a module is built from, and of CMakeLists.txt.

    Comments and white space are ignored.
    """
    built = _BUILD_OF_TESTS.sub(b"", (sources.parent / "CMakeLists.txt").read_bytes())
    made = blake2b(b" ".join(_BUILD_COMMENT.sub(b"", built).split()), digest_size=16)
    for folder in MODULES[module]:
        for name in sorted(name for name in os.listdir(sources / folder) if name.endswith((".h", ".cpp"))):
            code = _COMMENT.sub(b"", (sources / folder / name).read_bytes())
            made.update(b"\n%s\n" % name.encode() + b" ".join(code.split()))
    return made.hexdigest()


def check_sources(module: ModuleType, sources: Path = SOURCES) -> None:
    """Raise UsageError if a native module was built from other code, or by another CMakeLists.txt, than the checkout's.

    Passes if there is no checkout.
    """
    name = module.__name__.rpartition(".")[2]
    there = all(path.is_file() for path in (sources / "bindings.cpp", sources.parent / "CMakeLists.txt"))
    if not there or os.environ.get(ANYWAY):
        return
    if getattr(module, "SOURCES", "") != digest(name, sources):
        raise UsageError(
            name,
            f"it was built from other code than lies in {sources}, or otherwise, and might compute something else",
            f"{_BUILD} in {sources.parent} ({ANYWAY}=1 uses it as it is)",
        )


def not_built(name: str, error: ImportError, sources: Path = SOURCES) -> UsageError:
    """The error for a native module that cannot be imported, for instance because it was not built."""
    remedy = f"{_BUILD} in {sources.parent}" if sources.is_dir() else "install Coterie again with this Python"
    version = ".".join(map(str, sys.version_info[:2]))
    return UsageError(name, f"the native kernels are not built for Python {version}, or not whole: {error}", remedy)


def _header(sources: Path) -> str:
    return "".join(f'#define COTERIE_SOURCES{name.upper()} "{digest(name, sources)}"\n' for name in MODULES)


if __name__ == "__main__":  # CMakeLists.txt: python -m coterie.core.built CSRC HEADER
    Path(sys.argv[2]).write_text(_header(Path(sys.argv[1])))
