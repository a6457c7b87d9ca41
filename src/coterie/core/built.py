"""Which sources the native modules were built from, so that older ones are not used beside newer Python.

The build writes a digest of the sources into each module, and who imports one compares it with what lies beside the
package: an editable install that was updated and not built again has other sources. A digest and no number that people
raise, since a change that counts may be in any line: windows below 0 came to attention's kernels without a new operand.
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
ANYWAY = "COTERIE_OTHER_KERNELS"  # an environment variable: for who compares two builds, or is at work on the sources

_COMMENT = re.compile(rb'//[^\n"]*$', re.MULTILINE)  # one with a quote may be none, and counts


def digest(module: str, sources: Path = SOURCES) -> str:
    """A digest of the code in csrc/ that a module is built from: comments and white space are no part of it."""
    made = blake2b(digest_size=16)
    for folder in MODULES[module]:
        for name in sorted(name for name in os.listdir(sources / folder) if name.endswith((".h", ".cpp"))):
            code = _COMMENT.sub(b"", (sources / folder / name).read_bytes())
            made.update(b"\n%s\n" % name.encode() + b" ".join(code.split()))
    return made.hexdigest()


def check_sources(module: ModuleType, sources: Path = SOURCES) -> None:
    """Refuse a native module that was built from other code than lies in the package's csrc/, where that is.

    Raises UsageError.
    """
    name = module.__name__.rpartition(".")[2]
    if not (sources / "bindings.cpp").is_file() or os.environ.get(ANYWAY):
        return
    if getattr(module, "SOURCES", "") != digest(name, sources):
        raise UsageError(
            name,
            f"it was built from other code than lies in {sources}, and might compute something else",
            f"run `make setup`, or `pip install -e .`, in {sources.parent} ({ANYWAY}=1 uses it as it is)",
        )


def _header(sources: Path) -> str:
    return "".join(f'#define COTERIE_SOURCES{name.upper()} "{digest(name, sources)}"\n' for name in MODULES)


if __name__ == "__main__":  # CMakeLists.txt: python -m coterie.core.built CSRC HEADER
    Path(sys.argv[2]).write_text(_header(Path(sys.argv[1])))
