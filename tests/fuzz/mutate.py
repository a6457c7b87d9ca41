"""What damage does to bytes and to JSON: wrong types, numbers out of all bounds, names that leave a folder, cut ends.

All of it comes from one seeded generator, so that a seed makes the same case again.
Knows nothing about what is read from them.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 10**30, 10**4000),
    *(-(2**31), -(2**63), -(10**4000), 0.0, -0.0, 0.5, 1.5, 1e-45, 1e-320, 1e38, 1e39, 1e300, 1.7e308, -1e300),
    *(float("inf"), float("-inf"), float("nan")),
)
_TEXTS = (
    *("", " ", "x", "\0", "\n", "a\nb\x1b[31mc", "\ud800", "\u202e\u2028", "\U0001f600", "0", "-1", "1e999", "nan"),
    *("true", "null", "None", "..", "../x", "../../../../tmp/x", "/etc/passwd", "~", "~/x", "a/b", "a\\b", "C:\\x"),
    *("%s%n{0}{x}", "{{ 1 }}", "[bold]x[/]", "(a+)+$", "x" * 5000, "\u00e9" * 5000),
)


def value(rng: random.Random) -> Any:
    """A value that nobody expects."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice(_NUMBERS)
    if kind == 2:
        return rng.choice(_TEXTS)
    if kind == 3:
        return [value(rng) for _ in range(rng.choice((0, 1, 2, 5)))]
    if kind == 4:
        return {str(rng.choice(_TEXTS)): value(rng) for _ in range(rng.choice((0, 1, 2)))}
    return rng.choice(([rng.choice(_NUMBERS) % 2**70] * 3000, _deep(rng.choice(([], {})), 200), ["x"] * 3000))


def _deep(inner: Any, levels: int) -> Any:
    for _ in range(levels):
        inner = [inner] if isinstance(inner, list) else {"a": inner}
    return inner


def _places(tree: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a tree."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        found.append((tree, key))
        _places(tree[key], found)
    return found


def tree(rng: random.Random, sound: Any, most: int = 3) -> Any:
    """A copy of a JSON value with one to `most` places damaged."""
    changed = copy.deepcopy(sound)
    for _ in range(rng.randint(1, most)):
        places = _places(changed, [])[:2000]
        if not places:
            return value(rng)
        _damage(rng, *rng.choice(places), places)
    return changed


def _damage(rng: random.Random, holder: Any, key: Any, places: list[tuple[Any, Any]]) -> None:
    now, kind = holder[key], rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, at = rng.choice(places)
        if (at in other) if isinstance(other, dict) else at < len(other):
            holder[key] = copy.deepcopy(other[at])
    elif kind == 2 and isinstance(now, int | float):
        holder[key] = rng.choice((now + 1, now - 1, -now, now * 2, now * 1000, now // 2, str(now), [now]))
    elif kind == 3 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(now))
    elif kind == 4 and isinstance(holder, dict):
        holder[rng.choice((key + "x", key.upper(), rng.choice(_TEXTS)))] = holder.pop(key)
    elif kind == 5:
        holder[key] = rng.choice(([now], {"x": now}, {}, [], ""))
    else:
        holder[key] = value(rng)


def json_text(rng: random.Random, sound: Any) -> bytes:
    """A damaged JSON text: mostly sound JSON with damaged values, at times no JSON at all."""
    text = json.dumps(tree(rng, sound) if rng.random() < 0.9 else sound, ensure_ascii=rng.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    return raw(rng, data) if rng.random() < 0.15 else data


def raw(rng: random.Random, sound: bytes) -> bytes:
    """Bytes flipped, cut, doubled, or numbers of 1, 4 or 8 bytes put among them."""
    data = bytearray(sound)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + rng.choice((1, 4, 8, 100))]
        elif kind == 2:
            data[at:at] = data[rng.randrange(len(data) + 1) :][: rng.choice((1, 8, 200))]
        elif kind == 3 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        else:
            width = rng.choice((1, 4, 8))
            number = rng.choice((0, 1, 2, 7, 2**7, 2**8 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1))
            data[at : at + width] = (number % 256**width).to_bytes(width, "little")
    return bytes(data)
