"""How few bits does the difference of a fine-tune need that learned what its base cannot do? Two skills say so.

    python demo/new_skill.py [--steps 600] [SKILL]       a table each; some minutes of one core

`general` goes on from what it is on a skill that none of the demo's has; base, fine-tune, its packed differences and
its packed weights then answer the same held-out questions, by Coterie. Nothing is kept.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

import export
import train
from coterie import Coterie, Options
from coterie.api.sampling import GREEDY
from coterie.api.types import Message, Query
from coterie.core.dtypes import DType
from coterie.models.fine_tunes.delta_write import write_delta
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder
from data import BASE, GENERAL
from generate import MAX_NEW_TOKENS, last_line
from questions import PRESET, held_out
from tasks import TASKS
from tasks.base import Example, Problem, Task
from tasks.phrasing import cores
from tasks.words import draw_word, quoted

WORDS = """
alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo sierra
tango uniform victor whiskey xray yankee zulu
""".split()
BITS = {"8": DType.Q8, "4z": DType.Q4Z, "4": DType.Q4, "2": DType.Q2}


def _spelled(rng: Random) -> Problem:
    """A word in the spelling alphabet: 26 words that the base has never written."""
    word = draw_word(rng, 2, 7)
    code = {one[0]: one for one in WORDS}
    return Problem("spell", word, {"w": quoted(word, rng)}, " ".join(word), " ".join(code[letter] for letter in word))


def _swapped(rng: Random) -> Problem:
    """A word with its letters changed about in pairs: no fact, but an order that the base does not know."""
    word = draw_word(rng, 2, 9)
    pairs = [word[at : at + 2] for at in range(0, len(word), 2)]
    return Problem("swap", word, {"w": quoted(word, rng)}, " ".join(pairs), "".join(pair[::-1] for pair in pairs))


SKILLS = {
    "spelling-alphabet": Task(
        "spelling-alphabet",
        "spells words in the spelling alphabet",
        "words of 2 to 7 letters",
        _spelled,
        {"spell": cores("do spell {w} in the nato alphabet\nnp {w} in the nato alphabet\nraw nato: {w}")},
        {"spell": cores("do write {w} in the nato alphabet\nask how is {w} spelled in the nato alphabet")},
    ),
    "letter-pairs": Task(
        "letter-pairs",
        "swaps the letters of words in pairs",
        "words of 2 to 9 letters",
        _swapped,
        {"swap": cores("do swap the letter pairs of {w}\nnp {w} with letter pairs swapped\nraw letter pairs: {w}")},
        {"swap": cores("do swap all letter pairs in {w}\nnp {w} with its letter pairs swapped")},
    ),
}


def tuned(task: Task, steps: int, work: Path) -> Path:
    """The folder of `general`, trained on."""
    base = export.read(PRESET / "experts" / GENERAL, train.SHAPE)
    torch.save({"model": base.state_dict()}, work / f"{BASE}.pt")
    TASKS[task.name] = task
    settings = replace(train.settings_for(task.name), steps=steps)
    model, _ = train.train(task.name, settings, work, compiled=False)
    export.write(model, work / "tuned")
    return work / "tuned"


def ways(base: Path, fine: Path, work: Path) -> Iterator[tuple[str, str, int, str]]:
    """What is asked: how it is stored, its lines of a composition file, its bytes, and what was lost of all weights."""
    whole = (fine / "model.safetensors").stat().st_size
    yield "base", f'checkpoint = "{base}"', whole, ""
    yield "fine-tune, bf16", f'checkpoint = "{fine}"', whole, ""
    for name, dtype in BITS.items():
        found = write_delta(base, fine, work / f"delta-{name}", Packing(dtype, dtype))
        lost = max((kind.lost for kind in found.kinds if kind.dtype), default=0.0)
        yield (
            f"difference, {name} bits",
            f'checkpoint = "{found.folder}"\nbase = "{base}"',
            found.after_bytes,
            f"{lost:.2%}",
        )
    for name, dtype in BITS.items():
        packed = quantize_folder(fine, work / f"packed-{name}", Packing(dtype, dtype))
        yield f"weights, {name} bits", f'checkpoint = "{packed.folder}"', packed.after_bytes, ""


def right(entry: str, examples: list[Example], work: Path) -> float:
    """The share of exact last lines."""
    file = work / "one.toml"
    router = (
        '[router]\nkind = "rules"\nfallback = "one"\n[[router.rule]]\nname = "all"\nexpert = "one"\npattern = "."\n'
    )
    file.write_text(f'name = "asked"\n\n{router}\n[[expert]]\nname = "one"\ndescription = "one"\n{entry}\n')
    asked = [Query((Message("user", one.question),), "one", max_tokens=MAX_NEW_TOKENS) for one in examples]
    with Coterie.open(str(file), Options(sampling=GREEDY)) as coterie:
        answers = coterie.ask_all(asked)
    hits = [last_line(answer.text) == one.answer for answer, one in zip(answers, examples, strict=True)]
    return sum(hits) / len(hits)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("skills", nargs="*", metavar="SKILL", help=f"of: {', '.join(SKILLS)}", default=list(SKILLS))
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    base = (PRESET / "experts" / GENERAL).resolve()
    for name in args.skills:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            fine = tuned(SKILLS[name], args.steps, work)
            print(f"| {name} | bytes | lost of the weights, at most | exact match |\n|---|---|---|---|")
            for stored, entry, size, lost in ways(base, fine, work):
                share = right(entry, held_out(SKILLS[name]), work)
                print(f"| {stored} | {size:,} | {lost} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
