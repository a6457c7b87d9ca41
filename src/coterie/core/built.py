"""Which sources the native modules were built from, so that older ones are not used beside newer Python.

The build writes a digest of the sources into each module, and who imports one compares it with what lies beside the
package: an editable install that was updated and not built again has other sources. A digest and no number that people
raise, since a change that counts may be in any line: windows below 0 came to attention's kernels without a new operand.
How CMakeLists.txt has them compiled is a part of it: -ffp-contract=off, say, decides what is computed.
Knows nothing about what is computed. Runs before anything is installed, and so needs the standard library alone.
"""

from __future__ import annotations

import os
import re
import sys
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

from coterie.core.errors import UsageError

SOURCES = Path(__file__).resolve().parents[3] / "csrc"  # of a checkout or an editable install; others have none
MODULES = {"_cpu": (".", "kernels"), "_clock": ("clock",)}  # the folders of each
_BUILD = "run `make setup`, or `pip install -e .`,"
ANYWAY = "COTERIE_OTHER_KERNELS"  # an environment variable: for who compares two builds, or is at work on the sources

_COMMENT = re.compile(rb'//[^\n"]*$', re.MULTILINE)  # one with a quote may be none, and counts
_BUILD_COMMENT = re.compile(rb'#[^\n"]*$', re.MULTILINE)
_BUILD_OF_TESTS = re.compile(rb"^if\(COTERIE_TESTS\)$.*?^endif\(\)$", re.MULTILINE | re.DOTALL)  # of no module


def digest(module: str, sources: Path = SOURCES) -> str:
    """A digest of the code in csrc/ that a module is built from, and of CMakeLists.txt beside it, which says how.

    Comments and white space are no part of it.
    """
    built = _BUILD_OF_TESTS.sub(b"", (sources.parent / "CMakeLists.txt").read_bytes())
    made = blake2b(b" ".join(_BUILD_COMMENT.sub(b"", built).split()), digest_size=16)
    for folder in MODULES[module]:
        for name in sorted(name for name in os.listdir(sources / folder) if name.endswith((".h", ".cpp"))):
            code = _COMMENT.sub(b"", (sources / folder / name).read_bytes())
            made.update(b"\n%s\n" % name.encode() + b" ".join(code.split()))
    return made.hexdigest()


def check_sources(module: ModuleType, sources: Path = SOURCES) -> None:
    """Refuse a native module that was built from other code than lies in the package's csrc/, or otherwise than
    CMakeLists.txt says, where these are. Raises UsageError.
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
    """That a native module cannot be imported, for `error`: that of a checkout was not built, say."""
    remedy = f"{_BUILD} in {sources.parent}" if sources.is_dir() else "install Coterie again with this Python"
    version = ".".join(map(str, sys.version_info[:2]))
    return UsageError(name, f"the native kernels are not built for Python {version}, or not whole: {error}", remedy)


def _header(sources: Path) -> str:
    return "".join(f'#define COTERIE_SOURCES{name.upper()} "{digest(name, sources)}"\n' for name in MODULES)


if __name__ == "__main__":  # CMakeLists.txt: python -m coterie.core.built CSRC HEADER
    Path(sys.argv[2]).write_text(_header(Path(sys.argv[1])))
