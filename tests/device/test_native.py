"""The native tests (tests/native), built against the library of this checkout; `make sanitize` runs them too.

Knows nothing about what they test.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TAG = f"cp{sysconfig.get_python_version().replace('.', '')}"


def test_native_tests_pass(tmp_path):
    """A checkout that was installed in place has the library of its last build."""
    compiler = shutil.which("c++")
    libraries = sorted((ROOT / "build").glob(f"{TAG}*/libcoterie_native.a"))
    if compiler is None or not libraries:
        pytest.skip("no compiler, or no build folder in this checkout")
    program, first = tmp_path / "native_tests", tmp_path / "first.h"
    sources = sorted(str(path) for path in (ROOT / "tests" / "native").glob("*.cpp"))
    flags = ["-std=c++20", "-Og", "-ffp-contract=off", "-pthread"]
    # What all of them include is read once: that is half of the time.
    first.write_text(f'#include "{ROOT / "tests" / "native" / "plain.h"}"\n')
    subprocess.run([compiler, *flags, "-x", "c++-header", first, "-o", f"{first}.gch"], check=True, timeout=300)
    command = [compiler, *flags, "-include", first, "-o", program, *sources, libraries[-1]]
    subprocess.run(command, check=True, timeout=300)
    done = subprocess.run([program], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "0 failures" in done.stdout


CHECKS = re.findall(r"^sanitize-\w+: CHECKS := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("checks", CHECKS)
def test_what_make_sanitize_builds_can_be_configured(checks, tmp_path):
    """Building it takes minutes, and is done seldom."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake")
    options = ("-DCOTERIE_PYTHON=OFF", "-DCOTERIE_TESTS=ON", f"-DCOTERIE_SANITIZE={checks}")
    done = subprocess.run(
        [cmake, "-S", ROOT, "-B", tmp_path, *options], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_make_sanitize_has_checks():
    assert CHECKS == ["thread", "address,undefined"]
