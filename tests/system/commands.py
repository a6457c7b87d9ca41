"""Commands of `coterie` as processes of their own, by the interpreter that runs the tests.

Knows nothing about what they do.
"""

from __future__ import annotations

import sys

MAIN = "from coterie.cli.main import main; main()"


def command_of(*words: object) -> list[str]:
    """What starts `coterie` with these words."""
    return [sys.executable, "-c", MAIN, *map(str, words)]
