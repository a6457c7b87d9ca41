"""Mixes: the distribution of a workload's requests over experts, drawn from a seed.

    uniform   every expert equally often
    zipf:S    the expert of rank r with weight 1 / r^S; plain zipf is zipf:1
    bursty    several concurrent bursts, each for one expert and of geometric length; every request belongs to a burst
    FILE      measured counts: a JSON object, or CSV lines of expert,count

Knows nothing about prompts, engines or time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.composition.validate import name_hint
from coterie.core.errors import NotFoundError, UsageError
from coterie.core.lines import csv_rows
from coterie.core.parsed import parse_json
from coterie.core.paths import user_path

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

MIXES = ("uniform", "zipf", "bursty")
BURSTS_SHARE = 0.4  # concurrent bursts per expert; more than fit in memory, so that policies make a difference
BURST_REQUESTS = 16  # mean length of a burst


@dataclass(frozen=True, slots=True)
class Mix:
    """How often each expert is requested. `exponent`: for zipf; `counts`: from a file, in the order of experts."""

    text: str
    kind: str
    exponent: float = 1.0
    counts: tuple[float, ...] = ()

    def shares(self, experts: int, seed: int) -> F64:
        """Each expert's long-run share of the requests; the sum is 1."""
        if self.kind == "zipf":
            return self._zipf(np.random.default_rng(seed), experts)
        weights = np.asarray(self.counts) if self.kind == "file" else np.ones(experts)
        shares: F64 = weights / weights.sum()
        return shares

    def draw(self, experts: int, requests: int, seed: int) -> I64:
        """The expert of each request, by number."""
        rng = np.random.default_rng(seed)
        if self.kind == "uniform":
            return rng.integers(0, experts, requests)
        if self.kind == "bursty":
            return _bursty(rng, experts, requests)
        if self.kind == "zipf":
            ranked, weights = _ranks(rng, experts, self.exponent)
            return ranked[rng.choice(experts, requests, p=weights)]
        return rng.choice(experts, requests, p=self.shares(experts, seed))

    def _zipf(self, rng: np.random.Generator, experts: int) -> F64:
        ranked, weights = _ranks(rng, experts, self.exponent)
        shares = np.empty(experts)
        shares[ranked] = weights
        return shares


def mix_named(text: str, names: Sequence[str] = ()) -> Mix:
    """Parse a mix option; `names`: the experts that a file may refer to.

    Raises UsageError for an unknown mix or a damaged file, NotFoundError for an expert that does not exist.
    """
    kind, colon, exponent = text.partition(":")
    if text in MIXES:
        return Mix(text, text)
    if kind == "zipf" and colon:
        return Mix(text, kind, _exponent(exponent))
    path = user_path(text, "--mix")
    if path.suffix in (".csv", ".json"):
        return Mix(text, "file", counts=_counts(path, names))
    raise UsageError("--mix", f"{text!r} is not a mix", f"use one of {', '.join(MIXES)}, zipf:1.2 or a .csv or .json")


def draw(mix: str, experts: int, requests: int, seed: int) -> tuple[int, ...]:
    """The expert of each request, by number. Raises UsageError for an unknown mix."""
    return tuple(mix_named(mix).draw(experts, requests, seed).tolist())


def _exponent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError("--mix", f"zipf:{text} has no exponent of 0 or more", "write zipf:1.2, say")
    return value


def _ranks(rng: np.random.Generator, experts: int, exponent: float) -> tuple[I64, F64]:
    """The expert and the share of each rank; experts are ranked in random order."""
    weights = 1 / np.arange(1, experts + 1) ** exponent
    return rng.permutation(experts), weights / weights.sum()


def _bursty(rng: np.random.Generator, experts: int, requests: int) -> I64:
    going = rng.choice(experts, max(1, round(experts * BURSTS_SHARE)), replace=False)
    asked = np.empty(requests, dtype=np.int64)
    for number in range(requests):
        burst = int(rng.integers(len(going)))
        asked[number] = going[burst]
        if rng.random() < 1 / BURST_REQUESTS:
            going[burst] = rng.integers(experts)
    return asked


def _counts(path: Path, names: Sequence[str]) -> tuple[float, ...]:
    counts = dict.fromkeys(names, 0.0)
    for expert, count in _read(path).items():
        if expert not in counts:
            raise NotFoundError(
                str(path), f"there is no expert {expert!r} among {len(names)}", name_hint(expert, names)
            )
        if not _is_count(count):
            raise UsageError(str(path), f"the count of {expert} is {count!r}", "give a number, 0 or more")
        counts[expert] += float(count)
    if not sum(counts.values()):
        raise UsageError(str(path), "no expert is asked for", "give at least one count above 0")
    return tuple(counts.values())


def _is_count(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and 0 <= float(value) < math.inf
    except (TypeError, ValueError, OverflowError):
        return False


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("--mix", f"{path} cannot be read: {error}", "give a file of counts") from error
    if path.suffix == ".csv":
        rows = [row for _, row in csv_rows(path, text.splitlines()) if row]
        wrong = next((row for row in rows if len(row) != 2), None)
        if wrong is not None:
            raise UsageError(str(path), f"a line is {','.join(wrong)!r}", "write expert,count on each line")
        headed = bool(rows) and rows[0][1].strip().isalpha()
        found = {row[0]: row[1] for row in rows[headed:]}
        if len(found) < len(rows) - headed:
            twice = Counter(row[0] for row in rows[headed:]).most_common(1)[0][0]
            raise UsageError(str(path), f"{twice} is counted more than once", "add its counts up")
        return found
    value = parse_json(text, str(path), "write an object of expert: count")
    if not isinstance(value, dict):
        raise UsageError(str(path), "it is not a JSON object", "write an object of expert: count")
    return value
