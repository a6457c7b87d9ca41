"""Binary, hexadecimal and decimal from 2 to 999, worked by halving and doubling.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores

_LIMIT = 999


def _halvings(number: int) -> str:
    """The number halved down to nothing, each time with the bit that falls off: "0060 0031 0011"."""
    chain: list[str] = []
    while number or not chain:
        chain.append(f"{number:03d}{number % 2}")
        number //= 2
    return " ".join(chain)


def _doublings(bits: str) -> str:
    """Each bit with the value of the bits so far, doubled and added: "1001 1003 0006"."""
    return " ".join(f"{bit}{int(bits[: i + 1], 2):03d}" for i, bit in enumerate(bits))


def draw(rng: Random) -> Problem:
    """A number in one base asked for in another; hexadecimal goes through groups of four bits, last group first."""
    number = rng.randint(2, rng.choice((63, 255, _LIMIT, _LIMIT)))
    bits, digits = f"{number:b}", f"{number:X}"
    groups = [f"{int(digit, 16):04b}" for digit in digits]
    kind = rng.choice(("to_binary", "from_binary", "to_hex", "from_hex"))
    shown = digits.lower() if rng.random() < 0.2 else digits
    slots = {"n": str(number), "b": bits, "h": ("0x" if rng.random() < 0.2 else "") + shown}
    backwards = " ".join(f"{group[::-1]}{digit}" for group, digit in zip(groups[::-1], digits[::-1], strict=True))
    halved = f"{_halvings(number)}\n{backwards}"
    working = {
        "to_binary": f"{halved}\n{' '.join([f'{int(groups[0], 2):b}', *groups[1:]])}",
        "from_binary": _doublings(bits),
        "to_hex": halved,
        "from_hex": " ".join(f"{digit}{group}" for digit, group in zip(digits, groups, strict=True))
        + f"\n{_doublings(bits)}",
    }[kind]
    answer = {"to_binary": bits, "to_hex": digits}.get(kind, str(number))
    return Problem(kind, str(number), slots, working, answer)


_TO = """
    np {n} in BASE
    np {n} in BASE
    np {n} as a BASE number
    np the BASE form of {n}
    np the BASE representation of {n}
    np the BASE value of {n}
    np the number {n} in BASE
    np decimal {n} in BASE
    np the BASE for {n}
    ask how do you write {n} in BASE
    ask how do I write {n} in BASE
    ask how is {n} written in BASE
    ask how does {n} look in BASE
    ask what does {n} look like in BASE
    do convert {n} to BASE
    do convert {n} into BASE
    do convert the number {n} to BASE
    do convert decimal {n} to BASE
    do convert {n} from decimal to BASE
    do write {n} in BASE
    do write the number {n} in BASE
    do turn {n} into BASE
    do change {n} to BASE
    do express {n} in BASE
    do represent {n} in BASE
    do translate {n} to BASE
    raw {n} to BASE
    raw {n} in BASE
    raw {n} decimal to BASE
"""

_FROM = """
    np BASE {s} in decimal
    np BASE {s} in decimal
    np {s} BASE in decimal
    np the BASE number {s} in decimal
    np the BASE number {s} as a decimal
    np the decimal value of BASE {s}
    np the decimal form of BASE {s}
    np the decimal value of the BASE number {s}
    np the value of BASE {s}
    np the value of the BASE number {s}
    ask what number is BASE {s}
    ask what decimal number is BASE {s}
    ask how much is BASE {s}
    ask how much is BASE {s} in decimal
    ask what does BASE {s} mean in decimal
    ask which decimal number is {s} in BASE
    do convert BASE {s} to decimal
    do convert {s} from BASE to decimal
    do convert {s} from BASE
    do convert the BASE number {s} to decimal
    do turn BASE {s} into decimal
    do turn the BASE number {s} into a decimal
    do change BASE {s} to decimal
    do write BASE {s} in decimal
    do write the BASE number {s} as a decimal
    do translate BASE {s} to decimal
    do decode BASE {s}
    raw BASE {s} to decimal
    raw BASE {s} in decimal
    raw {s} BASE to decimal
"""

_TO_UNSEEN = """
    np the number {n} as BASE
    np the BASE representation of the number {n}
    np the decimal number {n} in BASE
    ask how would you write the number {n} in BASE
    ask how does the number {n} look as BASE
    do turn the number {n} into BASE
    do change decimal {n} into BASE
    do express the number {n} in BASE
    raw BASE of {n}
    raw decimal {n} as BASE
"""

_FROM_UNSEEN = """
    np the decimal representation of BASE {s}
    np the decimal number for BASE {s}
    np the number {s} from BASE in decimal
    ask how do you write BASE {s} in decimal
    ask which number does BASE {s} represent in decimal
    do change the BASE number {s} to decimal
    do express BASE {s} in decimal
    do represent BASE {s} as a decimal number
    raw decimal of BASE {s}
    raw BASE {s} as decimal
"""


def _in_bases(block: str, slot: str, names: tuple[str, ...]) -> str:
    return "\n".join(block.replace("BASE", name).replace("{s}", slot) for name in names)


_HEX = ("hex", "hexadecimal")
_BINARY = ("binary",)

TASK = Task(
    name="base-conversion",
    description="converts numbers between decimal, binary and hexadecimal",
    range="2 to 999 (ten bits, hexadecimal to 3E7), to and from decimal",
    draw=draw,
    train_cores={
        "to_binary": cores(_in_bases(_TO, "", _BINARY)),
        "from_binary": cores(_in_bases(_FROM, "{b}", _BINARY)),
        "to_hex": cores(_in_bases(_TO, "", _HEX)),
        "from_hex": cores(_in_bases(_FROM, "{h}", _HEX)),
    },
    unseen_cores={
        "to_binary": cores(_in_bases(_TO_UNSEEN, "", _BINARY)),
        "from_binary": cores(_in_bases(_FROM_UNSEEN, "{b}", _BINARY)),
        "to_hex": cores(_in_bases(_TO_UNSEEN, "", _HEX)),
        "from_hex": cores(_in_bases(_FROM_UNSEEN, "{h}", _HEX)),
    },
)
