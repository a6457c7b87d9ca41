"""Commands of `coterie` as processes of their own, by the interpreter that runs the tests.

Knows nothing about what they do.
"""

from __future__ import annotations

import sys

# Who starts tests in the background of a shell has SIGINT ignored, and so would the command.
MAIN = """
import signal
from coterie.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def command_of(*words: object) -> list[str]:
    """What starts `coterie` with these words."""
    return [sys.executable, "-c", MAIN, *map(str, words)]
