"""Commands of `coterie`: as calls, and as processes of their own by the interpreter that runs the tests.

Knows nothing about what they do.
"""

from __future__ import annotations

import json
import sys

from typer.testing import CliRunner

from coterie.cli.main import app

# Who starts tests in the background of a shell has SIGINT ignored, by nohup SIGHUP, and so would the command.
MAIN = """
import signal
from coterie.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
main()
"""


def command_of(*words: object) -> list[str]:
    """What starts `coterie` with these words."""
    return [sys.executable, "-c", MAIN, *map(str, words)]


runner = CliRunner()


def run(*args: object, stdin: str | None = None):
    return runner.invoke(app, [str(a) for a in args], input=stdin)


def refused(result, *words: str) -> str:
    """One sentence on stderr and exit 2."""
    assert result.exit_code == 2, result.output
    sentence = result.stderr.strip()
    assert sentence.startswith("coterie: ["), sentence
    assert "Traceback" not in sentence
    for word in words:
        assert word in sentence, sentence
    return sentence


def bench_serve(*args: object) -> dict:
    """What `coterie bench serve` reports."""
    result = run("bench", "serve", *args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def bench_serve_refused(*args: object) -> str:
    """What it says where it cannot."""
    result = run("bench", "serve", *args)
    assert result.exit_code == 2, result.output
    return result.stderr
