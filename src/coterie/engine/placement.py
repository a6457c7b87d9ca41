"""Placement: which of several equal devices behind one endpoint answers a request.

    health first         a device that fails or hangs is asked last
    residency            a device that has the expert, or is loading it, avoids a switch
    load balance         a device with a shorter queue loads it too, once the queue is longer than a switch costs
    prefix               prompt tokens that a device has computed need not be computed there again

All costs are in one unit: an ordinary request's share of a device's time. The decision is made when a request arrives
and is final. plan/place.py answers another question: where to hold which experts for a load known in advance.
Knows nothing about devices, threads or clocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coterie.core.values import value

# A choice, not a measurement: this many prompt tokens cost as much as an ordinary request.
TOKENS_PER_REQUEST = 512
# The cost of a switch in requests: before any is measured, and the bounds on measured values. Without the upper bound a
# slow disk would keep a second device idle; without the lower one every busy moment would copy an expert.
SWITCH_REQUESTS, MIN_REQUESTS, MAX_REQUESTS = 4.0, 2.0, 32.0
PIECE_TOKENS = 32  # granularity of prefix matching
MAX_PIECES = 1 << 16  # pieces remembered over all prompts: about 10 MB


@value
class Candidate:
    """How one device stands to a request for an expert.

    serves: it can serve the expert at all.
    holds: the expert is resident or loading.
    load: its unfinished requests.
    crowded: the experts of those requests and this one exceed its near budget: loading this one evicts one in use.
    free: the expert fits without an eviction.
    known_tokens: prompt tokens computed there before.
    num_loads: experts loaded there so far.
    avoided: it fails or hangs, and is asked only if no other device can be.
    """

    serves: bool
    holds: bool
    load: int
    crowded: bool
    free: bool
    known_tokens: int
    num_loads: int
    avoided: bool = False


def place(devices: Sequence[Candidate], switch_requests: float = SWITCH_REQUESTS) -> int | None:
    """The index of the device where a request costs least; None if no device serves it.

    `switch_requests`: the cost of a switch, in requests. Ties: a device where nothing is evicted, then the one with the
    fewest loads, so that experts spread over all budgets; then the first.
    """
    ranked = [(one.avoided, _rank(one, switch_requests), number) for number, one in enumerate(devices) if one.serves]
    return min(ranked)[2] if ranked else None


def _rank(one: Candidate, switch_requests: float) -> tuple[float, bool, int]:
    cost = one.load - one.known_tokens / TOKENS_PER_REQUEST
    if not one.holds:
        cost += switch_requests * (1 + one.crowded)
    # If it is already there nothing is loaded, so free room is irrelevant.
    return cost, not (one.holds or one.free), 0 if one.holds else one.num_loads


def switch_cost(switches: int, switch_s: float, finished: int, busy_s: float) -> float:
    """The cost of a switch, in requests: its mean time over that of a finished request. `busy_s`: time of all these."""
    if not switches or not finished or busy_s <= 0:
        return SWITCH_REQUESTS
    return min(max(switch_s / switches / (busy_s / finished), MIN_REQUESTS), MAX_REQUESTS)


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """A snapshot of a device between two steps, with the inputs of `switch_cost`. `residents`: also those loading.

    `near_bytes`: its budget for experts; `free_bytes`: the unused part of it. `loading`: experts are being loaded, even
    if no request waits for them any more.
    """

    residents: frozenset[str]
    near_bytes: int
    free_bytes: int
    num_loads: int
    switches: int
    switch_s: float
    finished: int
    busy_s: float
    loading: bool = False


def candidate_for(
    snapshot: DeviceSnapshot,
    expert: str,
    size_bytes: Mapping[str, int],
    asked: Mapping[str, int],
    known_tokens: int = 0,
    serves: bool = True,
    avoided: bool = False,
) -> Candidate:
    """A device's Candidate for a request for `expert`. `asked`: its unfinished requests by expert."""
    used = {name for name, count in asked.items() if count}
    needed = sum([size_bytes.get(name, 0) for name in used | {expert}])
    return Candidate(
        serves=serves,
        holds=expert in snapshot.residents or expert in used,
        load=sum(asked.values()),
        crowded=needed > snapshot.near_bytes,
        free=size_bytes.get(expert, 0) <= snapshot.free_bytes,
        known_tokens=known_tokens,
        num_loads=snapshot.num_loads,
        avoided=avoided,
    )


def mean_switch_cost(snapshots: Iterable[DeviceSnapshot]) -> float:
    """`switch_cost` over several devices."""
    each = tuple(snapshots)
    return switch_cost(
        sum([one.switches for one in each]),
        sum([one.switch_s for one in each]),
        sum([one.finished for one in each]),
        sum([one.busy_s for one in each]),
    )


class SeenPrefixes:
    """Which devices have computed which prompt prefixes; the least recently learnt are forgotten.

    A device may have evicted them since. Then it computes the prompt again: only time is lost, no token changes.
    """

    def __init__(self, max_pieces: int = MAX_PIECES) -> None:
        self._max_pieces = max_pieces
        self._pieces: OrderedDict[tuple[str, int], int] = OrderedDict()  # -> the set of devices, as bits

    def __len__(self) -> int:
        return len(self._pieces)

    def known(self, expert: str, prompt_ids: Sequence[int], devices: int) -> list[int]:
        """How many leading tokens of a prompt each device has computed for this expert, in whole pieces."""
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
        """Record that a device computes this prompt, and forget the oldest pieces beyond the limit."""
        for _, key in _pieces_of(expert, prompt_ids):
            self._pieces[key] = self._pieces.get(key, 0) | 1 << device
            self._pieces.move_to_end(key)
        while len(self._pieces) > self._max_pieces:
            self._pieces.popitem(last=False)


def _pieces_of(expert: str, prompt_ids: Sequence[int]) -> Iterable[tuple[int, tuple[str, int]]]:
    """Each piece's end, with a key that covers all tokens up to it."""
    chain = 0
    for end in range(PIECE_TOKENS, len(prompt_ids) + 1, PIECE_TOKENS):
        chain = hash((chain, tuple(prompt_ids[end - PIECE_TOKENS : end])))
        yield end, (expert, chain)
