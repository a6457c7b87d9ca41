"""Placement: which of several equal devices behind one endpoint answers a request.

    health first         who fails or hangs is asked last
    residency            who has the expert, or has it coming, need not bring it in
    but not for ever     a device with a shorter line brings it in too, once the line is longer than a switch costs
    prefix               tokens of the prompt that a device has computed need not be computed there again

All in one unit, an ordinary request's share of a device's time. It is decided when a request comes, from what is known
then, and stays. plan/place.py answers another question: who is to hold what for a load that is known beforehand.
Knows nothing about devices, threads or clocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coterie.core.values import value

# A choice, not a measurement: so many tokens of a prompt cost what an ordinary request does.
TOKENS_PER_REQUEST = 512
# What a switch costs until one was measured, and the bounds of what is measured, in requests. Without an upper bound a
# slow disk would keep a second device idle; without a lower one every busy moment would copy an expert.
SWITCH_REQUESTS, MIN_REQUESTS, MAX_REQUESTS = 4.0, 2.0, 32.0
PIECE_TOKENS = 32  # prefixes are told apart by pieces of so many tokens
MAX_PIECES = 1 << 16  # that are remembered of all prompts together: some 10 MB


@value
class Standing:
    """One device, as a request for an expert finds it.

    `serves`: it may be asked at all. `holds`: the expert is there or coming. `load`: requests that it has and that have
    not ended. `crowded`: the experts of these, with this one, are more than its near budget holds at once, so that to
    bring it in sends away one that is used. `free`: there is room without anybody's going. `known_tokens`: of the
    prompt, those that it has computed before. `brought`: how many were brought in here so far. `avoided`: it fails or
    hangs, and is asked where no other one can be.
    """

    serves: bool
    holds: bool
    load: int
    crowded: bool
    free: bool
    known_tokens: int
    brought: int
    avoided: bool = False


def place(devices: Sequence[Standing], switch_requests: float = SWITCH_REQUESTS) -> int | None:
    """The number of the device where a request costs least; None where no device serves it.

    `switch_requests`: what a switch costs, in requests. Of equal ones: where nobody has to go, then where the fewest
    were brought in, so that experts spread over all budgets; then the first.
    """
    ranked = [(one.avoided, _rank(one, switch_requests), number) for number, one in enumerate(devices) if one.serves]
    return min(ranked)[2] if ranked else None


def _rank(one: Standing, switch_requests: float) -> tuple[float, bool, int]:
    cost = one.load - one.known_tokens / TOKENS_PER_REQUEST
    if not one.holds:
        cost += switch_requests * (1 + one.crowded)
    # Where it is, nothing is brought in, so that room there says nothing.
    return cost, not (one.holds or one.free), 0 if one.holds else one.brought


def switch_cost(switches: int, switch_s: float, finished: int, busy_s: float) -> float:
    """What a switch costs, in requests: `switches` took `switch_s` altogether, and devices were at work for `busy_s`
    while so many requests `finished`.
    """
    if not switches or not finished or busy_s <= 0:
        return SWITCH_REQUESTS
    return min(max(switch_s / switches / (busy_s / finished), MIN_REQUESTS), MAX_REQUESTS)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a device between two steps: who is `there` or coming, and the numbers that `switch_cost` takes.

    `near_bytes`: its budget for experts; `free_bytes`: what of it is nobody's. `loading`: experts are under way, also
    those that nobody waits for any more.
    """

    there: frozenset[str]
    near_bytes: int
    free_bytes: int
    brought: int
    switches: int
    switch_s: float
    finished: int
    busy_s: float
    loading: bool = False


def standing(
    seen: Seen,
    expert: str,
    size_bytes: Mapping[str, int],
    asked: Mapping[str, int],
    known_tokens: int = 0,
    serves: bool = True,
    avoided: bool = False,
) -> Standing:
    """How a device stands to a request for `expert`. `asked`: its requests that have not ended, by expert."""
    used = {name for name, count in asked.items() if count}
    needed = sum([size_bytes.get(name, 0) for name in used | {expert}])
    return Standing(
        serves=serves,
        holds=expert in seen.there or expert in used,
        load=sum(asked.values()),
        crowded=needed > seen.near_bytes,
        free=size_bytes.get(expert, 0) <= seen.free_bytes,
        known_tokens=known_tokens,
        brought=seen.brought,
        avoided=avoided,
    )


def cost_of(seen: Iterable[Seen]) -> float:
    """As `switch_cost`, of several devices together."""
    each = tuple(seen)
    return switch_cost(
        sum([one.switches for one in each]),
        sum([one.switch_s for one in each]),
        sum([one.finished for one in each]),
        sum([one.busy_s for one in each]),
    )


class Prefixes:
    """Which devices have computed the beginnings of which prompts: the last ones, as far as anybody remembers.

    A device may have given them up meanwhile. Then the prompt is computed again there: no token depends on it.
    """

    def __init__(self, max_pieces: int = MAX_PIECES) -> None:
        self._max_pieces = max_pieces
        self._pieces: OrderedDict[tuple[str, int], int] = OrderedDict()  # -> the set of devices, as bits

    def __len__(self) -> int:
        return len(self._pieces)

    def known(self, expert: str, prompt_ids: Sequence[int], devices: int) -> list[int]:
        """How many of a prompt's first tokens each device has computed for this expert, in whole pieces."""
        found, still = [0] * devices, (1 << devices) - 1
        for end, key in _pieces_of(expert, prompt_ids):
            still &= self._pieces.get(key, 0)
            if not still:
                break
            for number in range(devices):
                if still >> number & 1:
                    found[number] = end
        return found

    def learn(self, expert: str, prompt_ids: Sequence[int], device: int) -> None:
        """A device computes this prompt. The oldest are forgotten where there are too many."""
        for _, key in _pieces_of(expert, prompt_ids):
            self._pieces[key] = self._pieces.get(key, 0) | 1 << device
            self._pieces.move_to_end(key)
        while len(self._pieces) > self._max_pieces:
            self._pieces.popitem(last=False)


def _pieces_of(expert: str, prompt_ids: Sequence[int]) -> Iterable[tuple[int, tuple[str, int]]]:
    """Each piece's end, and a key of all tokens up to it."""
    chain = 0
    for end in range(PIECE_TOKENS, len(prompt_ids) + 1, PIECE_TOKENS):
        chain = hash((chain, tuple(prompt_ids[end - PIECE_TOKENS : end])))
        yield end, (expert, chain)
