"""Words and made-up words for the tasks on letters, and the ways people quote them.

Knows nothing about tasks.
"""

from __future__ import annotations

from random import Random

_REAL = """
apple banana orange lemon garden window kitchen table chair river mountain forest ocean island bridge castle village
market school teacher student pencil paper letter number music guitar piano violin dance summer winter spring autumn
morning evening night sunset thunder lightning rainbow cloud storm wind snow flower tree leaf root branch bird eagle
sparrow robin horse rabbit tiger lion zebra monkey elephant giraffe dolphin whale shark turtle spider butterfly bee
honey butter cheese bread water coffee tea sugar salt pepper tomato potato onion carrot spoon fork knife plate bottle
glass silver golden copper iron stone crystal diamond mirror candle lantern lamp light shadow color purple yellow
green orange violet black white happy brave quiet gentle clever honest simple strong careful proud kind brother sister
mother father uncle cousin doctor nurse farmer baker sailor pilot captain soldier king queen prince dragon wizard
giant fairy planet rocket comet galaxy saturn jupiter venus energy engine motor wheel ticket station train airport
travel journey hello world python computer keyboard screen program memory router expert dataflow mississippi banana
coterie committee letterbox bookkeeper balloon coffee tennis soccer hockey puzzle ribbon blanket pillow basket bucket
hammer ladder zipper
""".split()
_STARTS = (
    "b",
    "br",
    "c",
    "ch",
    "cl",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "qu",
    "r",
    "s",
    "sh",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "y",
    "z",
    "",
)
_MIDDLES = ("a", "e", "i", "o", "u", "ea", "oo", "ai", "ee", "ou")
_ENDS = (
    "",
    "b",
    "ck",
    "d",
    "g",
    "l",
    "ll",
    "m",
    "n",
    "nd",
    "ng",
    "p",
    "r",
    "rt",
    "s",
    "ss",
    "st",
    "t",
    "tt",
    "x",
    "ff",
)


def draw_word(rng: Random, shortest: int, longest: int) -> str:
    """A real word, or as often as not an invented one that looks like a word, or now and then random letters."""
    while True:
        roll = rng.random()
        if roll < 0.3:
            word = rng.choice(_REAL)
        elif roll < 0.7:
            syllables = rng.randint(1, 3)
            word = "".join(rng.choice(_STARTS) + rng.choice(_MIDDLES) + rng.choice(_ENDS) for _ in range(syllables))
        else:
            word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(shortest, longest)))
        if shortest <= len(word) <= longest:
            return word


def quoted(word: str, rng: Random) -> str:
    """The word in double or single quotes, or bare."""
    return rng.choice(("{}", '"{}"', "'{}'", "'{}'")).format(word)
