"""Turns a core ("the sum of {a} and {b}") into an English question, in many compositional ways.

Knows nothing about any one task: only how people wrap a noun phrase, a question or an instruction.

A core line starts with its kind:
    np   a noun phrase            "the sum of {a} and {b}"     asked for by "what is ..." or "calculate ..."
    ask  a question               "how much do {a} and {b} make"
    do   an instruction           "add {a} and {b}"
    raw  complete as it stands    "{a} + {b} ="
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Frames:
    """The wrappings; X marks where the core goes."""

    asks: tuple[str, ...]
    dos: tuple[str, ...]
    phrases_asked: tuple[str, ...]
    phrases_done: tuple[str, ...]
    openers: tuple[str, ...]
    closers: tuple[str, ...]


SEEN = Frames(
    asks=("X?", "X?", "X?", "X", "please tell me X?", "tell me, X?", "can you tell me X?", "I want to know X"),
    dos=(
        "X",
        "X",
        "X.",
        "please X",
        "can you X?",
        "could you X?",
        "would you X?",
        "can you please X?",
        "I need you to X",
        "I want you to X",
        "help me X",
        "I need to X",
        "kindly X",
        "how do I X?",
        "please X.",
    ),
    phrases_asked=("what is X", "what is X", "what's X", "whats X", "do you know X", "what would be X"),
    phrases_done=(
        "calculate X",
        "compute X",
        "find X",
        "give me X",
        "tell me X",
        "work out X",
        "show me X",
        "get X",
        "determine X",
    ),
    openers=("", "", "", "", "hi, ", "hey, ", "hello, ", "hello! ", "quick question: ", "ok, ", "so, ", "question: "),
    closers=("", "", "", "", "", " please", ", please", " for me", ", thanks", " thanks", " now"),
)

UNSEEN = Frames(
    asks=("could you please tell me X?", "I would like to know X.", "hey there, X?", "please, X?"),
    dos=(
        "I want to X.",
        "will you X?",
        "could you please X?",
        "would you please X for me?",
        "I would like you to X",
        "can you help me X?",
        "now X!",
        "hello, can you X?",
    ),
    phrases_asked=(
        "so what is X",
        "tell me what X is",
        "please tell me what is X",
        "hey, what's X",
        "I need X",
        "I want to know X",
        "I would like X",
        "I would like to know what X is",
    ),
    phrases_done=("let me know X", "write down X", "help me find X", "look for X", "say X"),
    openers=("", "", "hello there, ", "one question: ", "please: ", "hi! "),
    closers=("", "", "", " please", ", thank you", " if you can", " right now"),
)


@dataclass(frozen=True, slots=True)
class Core:
    """One wording of one kind of problem, before wrapping."""

    shape: str
    text: str


def cores(block: str) -> tuple[Core, ...]:
    """Parses lines "shape text" into cores."""
    lines = [line.strip() for line in block.strip().splitlines() if line.strip()]
    parsed = tuple(Core(*line.split(" ", 1)) for line in lines)
    for core in parsed:
        if core.shape not in {"np", "ask", "do", "raw"}:
            raise ValueError(f"[tasks] core {core.text!r} has shape {core.shape!r}; use np, ask, do or raw")
    return parsed


def _case(text: str, rng: Random) -> str:
    """Sentence case mostly, lower case often, capitals rarely; slots in braces stay as they are."""
    roll = rng.random()
    if roll < 0.55:
        return text[:1].upper() + text[1:]
    if roll < 0.97:
        return text.lower() if rng.random() < 0.5 else text
    pieces = text.replace("{", "\0{").replace("}", "}\0").split("\0")
    return "".join(piece if piece.startswith("{") else piece.upper() for piece in pieces)


def _punctuate(text: str, rng: Random) -> str:
    """Sometimes the last mark is left out, doubled or set apart."""
    roll = rng.random()
    if roll < 0.15 and text[-1] in "?.!":
        return text[:-1]
    if roll < 0.19 and text[-1] == "?":
        return text[:-1] + " ?"
    if roll < 0.23 and text[-1] not in "?.!=:":
        return text + "."
    return text


_FILLERS = """
a an the of to in on at by with from as is are was it this that these those my your our me you i we one two number
numbers word words letter letters value values text here there now just only really quickly simply exactly carefully
correctly again also too then when if so how what which who where why do does did can could would should will may
might must let want need like get give take make find know think see look show tell say ask answer question problem
task example result results following given new good right together done written full whole other same some any each
every all both quick little big please thanks kindly maybe perhaps actually homework test class friend teacher boss
today tomorrow
""".split()


_SMALL = frozenset(["a", "an", "the", "of", "to", "in", "is", "me", "you", "i", "it", "do", "so", "be"])


def _roughened(text: str, rng: Random) -> str:
    """The text with a stray word put in or a small word left out, never beside a slot: people write like that.

    A tiny model otherwise latches on to one accidental word of a wording, and a new wording misleads it.
    """
    words = text.split(" ")
    for _ in range(rng.choice((1, 1, 2, 3))):
        spots = [i for i in range(1, len(words)) if "{" not in words[i - 1] + words[i]]
        if not spots:
            break
        spot = rng.choice(spots)
        if rng.random() < 0.7:
            words.insert(spot, rng.choice(_FILLERS))
        elif words[spot] in _SMALL:
            del words[spot]
    return " ".join(words)


def _wrap(core: Core, frames: Frames, rng: Random) -> str:
    if core.shape == "raw":
        return core.text
    text, frame = core.text, rng.choice(frames.dos if core.shape == "do" else frames.asks)
    if core.shape == "np":
        roll = rng.random()
        if roll < 0.12:
            return text + rng.choice(("", "?", " = ?", " please"))
        if roll < 0.56:
            text, frame = rng.choice(frames.phrases_asked).replace("X", text), rng.choice(("X?", "X?", "X"))
        else:
            text, frame = rng.choice(frames.phrases_done).replace("X", text), rng.choice(frames.dos)
    body = frame.replace("X", text)
    closer = rng.choice(frames.closers)
    if closer and not (body[-1] in ".!" or " for me" in body or "please" in body):
        body = body[:-1] + closer + "?" if body[-1] == "?" else body + closer
    return rng.choice(frames.openers) + body


def phrase(core: Core, frames: Frames, slots: dict[str, str], rng: Random, rough: float = 0.0) -> str:
    """One wrapped question with its slots filled; a share of `rough` has stray words, for training only."""
    text = _wrap(core, frames, rng)
    if rng.random() < rough:
        text = _roughened(text, rng)
    text = _punctuate(_case(text, rng), rng)
    return text.format(**slots)
