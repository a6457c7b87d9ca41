"""What all tests share: libraries keep to one thread, and tables are as wide as where there is no terminal."""

from __future__ import annotations

import os

# Read once, when NumPy and torch are first imported, so before any test module is. Their threads spin while they wait
# for each other: beside other processes, products of small matrices took seven times as long as on one thread.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# A console that finds it when it is made keeps that width; processes of pytest-xdist inherit one.
os.environ.pop("COLUMNS", None)
