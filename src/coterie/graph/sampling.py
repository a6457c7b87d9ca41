"""What `sample` means, in NumPy: from a row of logits and its settings to a token. Every device must draw the same.

    logits -> repetition -> presence, frequency -> bias                                 where somebody asks for changes
    z = logits / temperature -> order (z down, index up) -> top-k -> p = softmax -> min-p, top-p -> first cumulative > u

Knows nothing about graphs or requests. The random number depends on (seed, position) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

_MASK = 2**64 - 1
_MANY = 4096  # fewer are sorted sooner than they are counted
_STEPS, _FAR = 16.0, 64  # likelihoods are counted in steps of e^(1/16), those below e^-64 together


Ids: TypeAlias = npt.NDArray[np.int32]
BIAS_ONLY = -1  # in place of a count: the token has not come


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """How a row's logits are changed before its token is drawn, by what came before and by biases.

    Of N tokens, each named once: `ids_N`; `times_N`, how often it came in the answer (0: in the prompt alone;
    BIAS_ONLY: not at all); `bias_N`, what is added. `behind`: tokens that came after those, in order. `repetition`
    divides the logits of tokens that came where they are above 0, and multiplies them elsewhere (1: none); `presence`
    and, for each time, `frequency` are taken from those of the answer (0: none).
    """

    repetition: float
    presence: float
    frequency: float
    ids_N: Ids
    times_N: Ids
    bias_N: npt.NDArray[np.float32]
    behind: tuple[int, ...] = ()


class Settings(Protocol):
    """How one row is drawn; temperature 0 is greedy; top_k 0, top_p 1, min_p 0 mean no limit."""

    @property
    def temperature(self) -> float:
        """Divides the logits."""

    @property
    def top_k(self) -> int:
        """Keep so many."""

    @property
    def top_p(self) -> float:
        """Keep the shortest prefix with this mass."""

    @property
    def min_p(self) -> float:
        """Drop what is less likely than this share of the likeliest."""

    @property
    def seed(self) -> int:
        """Chooses the stream of random numbers."""

    @property
    def changes(self) -> Changes | None:
        """What comes before all that; None: nothing."""


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
    for token in changes.behind:
        known[token] = max(known.get(token, 0), 0) + 1
    ids, times = np.array(list(known), np.intp), np.array(list(known.values()), np.int64)
    if changes.repetition != 1:
        repeat(z, ids[times != BIAS_ONLY], changes.repetition)
    answer = ids[times > 0]
    z[answer] -= (changes.presence + changes.frequency * times[times > 0]).astype(np.float32)
    z[changes.ids_N] += changes.bias_N
    return z


def repeat(z_V: npt.NDArray[np.float32], ids: npt.NDArray[np.intp], penalty: float) -> None:
    """Divide the logits of these tokens where they are above 0 and multiply them elsewhere, in place.

    Source: Keskar et al., CTRL (arXiv 1909.05858), section 4.1; as transformers has it for logits below 0.
    """
    was, by = z_V[ids], np.float32(penalty)
    z_V[ids] = np.where(was < 0, was * by, was / by)


def draw(logits_V: npt.NDArray[np.float32], settings: Settings, position: int) -> int:
    """Draw a token id from one row of logits; `position` is that of the token whose logits these are.

    A row that holds a NaN has no order and draws -1, which is no token; devices turn it into an error.
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
    """The definition: everything in order, then the limits."""
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
    """The same token without top-k, with hardly anything sorted; None where rounding may decide.

    Tokens are counted by likelihood, in steps of e^(1/16): a step's sum needs no order, and only the step that holds a
    border is sorted. Sums in another order differ by less than `margin`; what is nearer to a border is left to the
    definition.
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
        """The token whose sum reaches (left) or passes (right) `wanted`, and that sum."""
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
    """Token ids by z down, then index up: the first `top_k`, or all. Sorts only those that can be among them."""
    least = np.float32(-np.inf)
    if 0 < top_k < len(z_V):
        least = np.partition(z_V, len(z_V) - top_k)[len(z_V) - top_k]
    # What has no chance at all, as where a mask forbids it, would add nothing but zeros.
    candidates = np.flatnonzero((z_V >= least) & (z_V > -np.inf))
    if not len(candidates):
        candidates = np.arange(len(z_V))
    order = candidates[np.argsort(-z_V[candidates], kind="stable")]
    return order[:top_k] if top_k > 0 else order
