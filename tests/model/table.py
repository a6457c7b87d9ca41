"""Prints the agreement table as Markdown: `python tests/model/table.py [backend] [--all]`.

Each row: the largest error of a logit relative to the largest logit, that of transformers in the same type (against the
same rounded weights in float32), and how many of 64 greedy tokens, from the first, equal those of transformers in
float32: ours, and those of transformers in the same type.
"""

import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


import itertools

import transformers
from tests.model import theirs, tiny
from tests.model.runner import BACKENDS, Stepper

from coterie.models.model import open_model


def compare(backend, row, rope, dtype):
    """One line's numbers: our error, transformers' own, and how many greedy tokens of each agree with float32."""
    with tempfile.TemporaryDirectory() as folder:
        tiny.save(tiny.make(row, rope), folder, dtype)
        wanted = theirs.ask(folder, dtype)
        stepper = Stepper(BACKENDS[backend](open_model(tiny.expert(folder))))
        error = theirs.relative_error(stepper.feed((stepper.sequence(), wanted.prompt)), wanted.truth)
        greedy = stepper.greedy(wanted.prompt[: theirs.GREEDY_FROM], theirs.GREEDY_TOKENS)
        stepper.backend.close()
        agreed = [theirs.agreeing(one, wanted.greedy) for one in (greedy, wanted.own_greedy)]
    return error, wanted.own_error, agreed


def main(arguments):
    """Print the table of the named backend (default: the last), for the ordinary cases or all of them."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    named = [argument for argument in arguments if argument in BACKENDS]
    backend = named[0] if named else list(BACKENDS)[-1]
    cases = tiny.EVERY_CASE if "--all" in arguments else tiny.CASES
    print(f"Backend: {backend}\n")
    print("| model | rope | type | max error | transformers' own | equal tokens | transformers' own |")
    print("|---|---|---|---|---|---|---|")
    for (row, rope), dtype in itertools.product(cases, tiny.DTYPES):
        error, own_error, same = compare(backend, row, rope, dtype)
        theirs_say = (f"{own_error:.1e}", str(same[1])) if own_error else ("-", "-")
        print(f"| {row} | {rope} | {dtype} | {error:.1e} | {theirs_say[0]} | {same[0]} | {theirs_say[1]} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
