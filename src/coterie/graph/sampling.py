"""Defines `sample`, in NumPy: from a row of logits and its settings to a token. Every device must draw the same one.

    logits -> repetition -> presence, frequency -> bias                            if the settings have `changes`
    z = logits / temperature -> sort by z descending, then index ascending -> top-k -> p = softmax -> min-p, top-p
      -> first token whose cumulative p > u

Knows nothing about graphs or requests. The random number depends on (seed, position) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

_MASK = 2**64 - 1
_MANY = 4096  # for fewer, sorting is faster than counting
_STEPS, _FAR = 16.0, 64  # bins of likelihood are e^(1/16) wide; the last one holds all below e^-64


Ids: TypeAlias = npt.NDArray[np.int32]
BIAS_ONLY = -1  # in place of a count: the token has not occurred


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """Penalties and biases that change a row's logits before its token is drawn.

    For N distinct tokens: `ids_N`; `times_N`, how often each occurs in the answer (0: only in the prompt; BIAS_ONLY:
    nowhere); `bias_N`, what is added to its logit. `later_tokens`: tokens of the answer, in order, not yet counted.
    `repetition` divides positive logits of tokens that occurred and multiplies negative ones (1: none). `presence`, and
    `frequency` once per occurrence, are subtracted from the logits of tokens in the answer (0: none).
    """

    repetition: float
    presence: float
    frequency: float
    ids_N: Ids
    times_N: Ids
    bias_N: npt.NDArray[np.float32]
    later_tokens: tuple[int, ...] = ()


class Settings(Protocol):
    """How one row is drawn; temperature 0 is greedy; top_k 0, top_p 1, min_p 0 mean no limit."""

    @property
    def temperature(self) -> float:
        """Divides the logits."""

    @property
    def top_k(self) -> int:
        """Keep the k likeliest tokens."""

    @property
    def top_p(self) -> float:
        """Keep the shortest prefix with at least this probability mass."""

    @property
    def min_p(self) -> float:
        """Drop tokens less likely than this fraction of the likeliest one."""

    @property
    def seed(self) -> int:
        """Chooses the stream of random numbers."""

    @property
    def changes(self) -> Changes | None:
        """Penalties and biases, applied before all of the above; None: none."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1): splitmix64 over a counter (Steele, Lea, Flood: Fast Splittable Generators, 2014)."""
    x = (seed + 0x9E3779B97F4A7C15 * (position + 1)) & _MASK
    x ^= x >> 30
    x = (x * 0xBF58476D1CE4E5B9) & _MASK
    x ^= x >> 27
    x = (x * 0x94D049BB133111EB) & _MASK
    x ^= x >> 31
    return float(x >> 11) * 2.0**-53


def changed(logits_V: npt.NDArray[np.float32], changes: Changes) -> npt.NDArray[np.float32]:
    """A copy of a row of logits, changed: repetition, then presence and frequency (summed in float64), then bias."""
    z, known = logits_V.copy(), dict(zip(changes.ids_N.tolist(), changes.times_N.tolist(), strict=True))
    for token in changes.later_tokens:
        known[token] = max(known.get(token, 0), 0) + 1
    ids, times = np.array(list(known), np.intp), np.array(list(known.values()), np.int64)
    if changes.repetition != 1:
        repeat(z, ids[times != BIAS_ONLY], changes.repetition)
    answer = ids[times > 0]
    z[answer] -= (changes.presence + changes.frequency * times[times > 0]).astype(np.float32)
    z[changes.ids_N] += changes.bias_N
    return z


def repeat(z_V: npt.NDArray[np.float32], ids: npt.NDArray[np.intp], penalty: float) -> None:
    """Divide positive logits of these tokens by `penalty` and multiply negative ones by it, in place.

    Source: Keskar et al., CTRL (arXiv 1909.05858), section 4.1; for negative logits, as transformers does it.
    """
    was, by = z_V[ids], np.float32(penalty)
    z_V[ids] = np.where(was < 0, was * by, was / by)


def draw(logits_V: npt.NDArray[np.float32], settings: Settings, position: int) -> int:
    """Draw a token id from one row of logits; `position` is that of the token that produced these logits.

    A row that contains a NaN has no order and yields -1, which is no token; devices turn it into an error.
    """
    if settings.changes is not None:
        logits_V = changed(logits_V, settings.changes)
    if np.isnan(logits_V).any():
        return -1
    if settings.temperature == 0:
        return int(np.argmax(logits_V))
    z = (logits_V / np.float32(settings.temperature)).astype(np.float32)
    u = uniform(settings.seed, position)
    if len(z) >= _MANY and not 0 < settings.top_k < len(z):
        chosen = _by_count(z, settings, u)
        if chosen is not None:
            return chosen
    return _among_all(z, settings, u)


def _among_all(z: npt.NDArray[np.float32], settings: Settings, u: float) -> int:
    """The definition: sort everything, then apply the limits."""
    order = _order(z, settings.top_k)
    kept = z[order].astype(np.float64)
    p = np.exp(kept - kept[0])
    p /= p.sum()
    # min-p first, then top-p: both cut a descending list, so the shorter prefix wins.
    count = int(np.count_nonzero(p >= settings.min_p * p[0]))
    if settings.top_p < 1:
        count = min(count, int(np.searchsorted(np.cumsum(p), settings.top_p, side="left")) + 1)
    p = p[: max(count, 1)]
    cumulative = np.cumsum(p)
    chosen = min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(p) - 1)
    return int(order[chosen])


def _by_count(z_V: npt.NDArray[np.float32], settings: Settings, u: float) -> int | None:
    """The same token, when there is no top-k, almost without sorting; None if rounding could decide.

    Tokens are binned by likelihood, in steps of e^(1/16): the sum of a bin needs no order, so only the bin in which a
    boundary falls is sorted. Summing in another order changes a sum by less than `margin`; a boundary that close is
    left to the definition.
    """
    largest = z_V.max()
    if not np.isfinite(largest):
        return None
    likely_V = np.exp(z_V.astype(np.float64) - largest)
    with np.errstate(over="ignore"):
        step_V = np.minimum((largest - z_V) * np.float32(_STEPS), np.float32(_FAR * _STEPS)).astype(np.intp)
    reached = np.concatenate([[0.0], np.cumsum(np.bincount(step_V, weights=likely_V))])
    margin = len(z_V) * 2.0**-50 * float(reached[-1])

    def find(wanted: float, side: Literal["left", "right"]) -> tuple[int, float] | None:
        """The token at which the cumulative sum reaches (left) or passes (right) `wanted`, and that sum."""
        step = int(np.searchsorted(reached, wanted, side)) - 1
        tokens = np.flatnonzero(step_V == max(step, 0))
        order = tokens[np.argsort(-z_V[tokens], kind="stable")]
        sums = np.concatenate([reached[[max(step, 0)]], reached[max(step, 0)] + np.cumsum(likely_V[order])])
        at = int(np.searchsorted(sums, wanted, side))
        if not 0 < at < len(sums) or np.abs(sums[at - 1 : at + 1] - wanted).min() <= margin:
            return None
        return int(order[at - 1]), float(sums[at])

    last = float(reached[-1])
    if settings.min_p > 0:
        if (np.abs(likely_V - settings.min_p) <= len(z_V) * 2.0**-50 * settings.min_p).any():
            return None
        last = float(likely_V[likely_V >= settings.min_p].sum())
    if settings.top_p < 1:
        cut = find(settings.top_p * float(reached[-1]), "left")
        if cut is None:
            return None
        last = min(last, cut[1])
    chosen = find(u * last, "right")
    return None if chosen is None else chosen[0]


def _order(z_V: npt.NDArray[np.float32], top_k: int) -> npt.NDArray[np.intp]:
    """Token ids by descending z, then ascending index: the first `top_k`, or all. Sorts only possible candidates."""
    least = np.float32(-np.inf)
    if 0 < top_k < len(z_V):
        least = np.partition(z_V, len(z_V) - top_k)[len(z_V) - top_k]
    # Logits of -inf, from a mask for instance, would contribute only zeros.
    candidates = np.flatnonzero((z_V >= least) & (z_V > -np.inf))
    if not len(candidates):
        candidates = np.arange(len(z_V))
    order = candidates[np.argsort(-z_V[candidates], kind="stable")]
    return order[:top_k] if top_k > 0 else order
