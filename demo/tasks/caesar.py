"""The Caesar cipher on words, both ways.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores
from .words import draw_word, quoted

_MAX_SHIFT = 13
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def _shift(word: str, by: int) -> str:
    return word.translate(str.maketrans(_ALPHABET, _ALPHABET[by:] + _ALPHABET[:by]))


def draw(rng: Random) -> Problem:
    """A word and a shift; the working writes the alphabet's images, aDbEcF..., then the word's letters with theirs.

    Shifting a letter at once is addition modulo 26, which a model this small does not learn; going on in the alphabet
    and looking a letter up in what it wrote, it does.
    """
    word, by = draw_word(rng, 3, 9), rng.randint(1, _MAX_SHIFT)
    kind = rng.choice(("encode", "decode"))
    plain, secret = word, _shift(word, by)
    given, answer, sign = (plain, secret, "+") if kind == "encode" else (secret, plain, "-")
    images = _shift(_ALPHABET, by if sign == "+" else -by).upper()
    table = "".join(a + b for a, b in zip(_ALPHABET, images, strict=True))
    pairs = " ".join(a + b.upper() for a, b in zip(given, answer, strict=True))
    working = f"{sign}{by} {table}\n{pairs}"
    return Problem(kind, f"{by} {word}", {"w": quoted(given, rng), "k": str(by)}, working, answer)


_BLOCK = """
    do VERB {w} with a Caesar cipher of shift {k}
    do VERB {w} with a Caesar shift of {k}
    do VERB {w} with Caesar shift {k}
    do VERB {w} with the Caesar cipher and shift {k}
    do VERB {w} using a Caesar cipher with shift {k}
    do VERB {w} using a Caesar shift of {k}
    do VERB {w} using Caesar {k}
    do VERB the word {w} with a Caesar cipher of shift {k}
    do VERB the word {w} with a Caesar shift of {k}
    do VERB the word {w} using a Caesar cipher with shift {k}
    do VERB the message {w} with Caesar shift {k}
    do VERB the text {w} with a Caesar cipher, shift {k}
    do VERB this with Caesar shift {k}: {w}
    do VERB this word with a Caesar shift of {k}: {w}
    do use a Caesar cipher with shift {k} to VERB {w}
    do use a Caesar shift of {k} to VERB {w}
    do use the Caesar cipher to VERB {w} with shift {k}
    do use Caesar shift {k} to VERB the word {w}
    np {w} PAST with Caesar shift {k}
    np {w} PAST with a Caesar cipher of shift {k}
    np {w} PAST by a Caesar shift of {k}
    np the word {w} PAST with a Caesar shift of {k}
    np the Caesar cipher of shift {k} PAST from {w}
    ask how do you VERB {w} with a Caesar shift of {k}
    ask how do I VERB {w} with Caesar shift {k}
    ask how is {w} PAST with a Caesar cipher of shift {k}
    raw Caesar {k}, VERB {w}
    raw Caesar shift {k}: VERB {w}
    raw VERB (Caesar, {k}): {w}
    raw VERB {w}, Caesar cipher, shift {k}
"""

_UNSEEN_BLOCK = """
    do VERB the text {w} using Caesar shift {k}
    do VERB the message {w} with a Caesar cipher of shift {k}
    do VERB {w} by a Caesar shift of {k}
    do use the Caesar cipher with a shift of {k} to VERB the word {w}
    do take a Caesar shift of {k} and VERB {w}
    np {w} PAST using a Caesar cipher with shift {k}
    np the message {w} PAST with Caesar shift {k}
    ask how do you VERB the word {w} using a Caesar cipher, shift {k}
    raw VERB the word {w}: Caesar, shift {k}
    raw Caesar cipher, {k}: VERB {w}
"""


def _with_verbs(block: str, verbs: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(block.replace("VERB", verb).replace("PAST", past) for verb, past in verbs)


_ENCODE = (("encode", "encoded"), ("encrypt", "encrypted"))
_DECODE = (("decode", "decoded"), ("decrypt", "decrypted"))

TASK = Task(
    name="caesar-cipher",
    description="encrypts and decrypts words with the Caesar cipher",
    range=f"words of 3 to 9 letters, shifts 1 to {_MAX_SHIFT}, both ways",
    draw=draw,
    train_cores={"encode": cores(_with_verbs(_BLOCK, _ENCODE)), "decode": cores(_with_verbs(_BLOCK, _DECODE))},
    unseen_cores={
        "encode": cores(_with_verbs(_UNSEEN_BLOCK, _ENCODE)),
        "decode": cores(_with_verbs(_UNSEEN_BLOCK, _DECODE)),
    },
)
