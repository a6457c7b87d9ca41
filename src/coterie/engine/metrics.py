"""Metrics: what the engine has done so far, as plain printable numbers.

Knows nothing about who reads them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

from coterie.core.units import format_seconds
from coterie.engine.request import FinishReason, Request, Timings

# Upper bounds of the histogram's buckets in seconds: three per decade, from 0.1 ms to 100 s.
BUCKETS_S = (*(base * 10.0**exponent for exponent in range(-4, 2) for base in (1, 2, 5)), 100.0)

# Counted per expert, by the requests that ended, except for switches.
ExpertCount = Literal["finished", "failed", "prompt_tokens", "drawn_tokens", "switches"]
EXPERT_COUNTS: tuple[ExpertCount, ...] = get_args(ExpertCount)


def _none_of_each() -> dict[ExpertCount, Counter[str]]:
    return {of: Counter() for of in EXPERT_COUNTS}


PriorityClass = Literal["urgent", "usual", "behind"]
PRIORITY_CLASSES: tuple[PriorityClass, ...] = get_args(PriorityClass)


def priority_class(priority: int) -> PriorityClass:
    """Metrics group priorities into three classes (below 0, 0, above 0), since their number is unbounded."""
    return PRIORITY_CLASSES[1 + (priority > 0) - (priority < 0)]


@dataclass(slots=True)
class Histogram:
    """Counts of durations per bucket; `counts` has one entry more than BUCKETS_S, for longer ones."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total: int = 0
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total += 1
        self.sum_s += seconds

    def __str__(self) -> str:
        return f"{format_seconds(self.sum_s / self.total)} mean of {self.total}" if self.total else "none"


@dataclass(slots=True)
class PriorityMetrics:
    """For requests of one priority class: time in the queue, time to first token, and preemptions.

    `pauses`: how often a started request gave up its KV state to one of better priority.
    """

    queued: Histogram = field(default_factory=Histogram)
    ttft: Histogram = field(default_factory=Histogram)
    pauses: int = 0


@dataclass(slots=True)
class Metrics:
    """Totals since the start. A switch is a fetch that was started; a hit, a request whose expert was resident.

    refused: not submitted, because the queue was full.
    fallbacks: the router was unsure and used its fallback.
    cached_tokens: prompt tokens found in the prefix cache.
    guessed_tokens: drafted by speculative decoding; accepted_tokens: how many of them were accepted.
    drafted_tokens, accepted_drafted_tokens: the part of these that came from draft experts.
    by_priority: by the class of the requested priority.
    by_expert: each count by expert, for experts that have any.
    last_end_s: when each expert's last answer ended, on the device's clock.
    """

    submitted: int = 0
    refused: int = 0
    fallbacks: int = 0
    admitted: int = 0
    finished: Counter[FinishReason] = field(default_factory=Counter)
    hits: int = 0
    misses: int = 0
    switches: int = 0
    fetched_bytes: int = 0
    failed_fetches: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    drawn_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    drafted_tokens: int = 0
    accepted_drafted_tokens: int = 0
    max_overtaken: int = 0
    by_priority: dict[PriorityClass, PriorityMetrics] = field(
        default_factory=lambda: {of: PriorityMetrics() for of in PRIORITY_CLASSES}
    )
    tpot: Histogram = field(default_factory=Histogram)
    switch: Histogram = field(default_factory=Histogram)
    by_expert: dict[ExpertCount, Counter[str]] = field(default_factory=_none_of_each)
    last_end_s: dict[str, float] = field(default_factory=dict)

    @property
    def ttft(self) -> Histogram:
        """Time to first token over all requests."""
        each = [its.ttft for its in self.by_priority.values()]
        counts = [sum(of) for of in zip(*[one.counts for one in each], strict=True)]
        return Histogram(counts, sum([one.total for one in each]), sum([one.sum_s for one in each]))

    def count_admitted(self, request: Request, overtaken: int, queued_s: float) -> None:
        """Count a request admitted after `queued_s`, having been overtaken `overtaken` times."""
        self.admitted += 1
        self.by_priority[priority_class(request.priority)].queued.add(queued_s)
        self.prompt_tokens += len(request.prompt_ids)
        self.max_overtaken = max(self.max_overtaken, overtaken)

    def forget(self, expert_id: str) -> None:
        """Drop the per-expert figures of a removed expert; the totals stay."""
        self.last_end_s.pop(expert_id, None)
        for counts in self.by_expert.values():
            counts.pop(expert_id, None)

    def count_switch(self, expert_id: str, size_bytes: int) -> None:
        """Count a started fetch of an expert of `size_bytes`."""
        self.switches += 1
        self.by_expert["switches"][expert_id] += 1
        self.fetched_bytes += size_bytes

    def count_guesses(self, guessed: int, accepted: int, drafted: bool = False) -> None:
        """Count a step's guesses, and how many were accepted; `drafted`: they came from a draft expert."""
        self.guessed_tokens += guessed
        self.accepted_tokens += accepted
        if drafted:
            self.drafted_tokens += guessed
            self.accepted_drafted_tokens += accepted

    def count_end(self, request: Request, reason: FinishReason, timings: Timings, tokens: int) -> None:
        """Count an ended request; `tokens`: of prompt and answer together."""
        self.finished[reason] += 1
        prompt = len(request.prompt_ids)
        counts = self.by_expert
        counts["finished"][request.expert_id] += 1
        counts["failed"][request.expert_id] += reason == "error"
        counts["prompt_tokens"][request.expert_id] += prompt
        counts["drawn_tokens"][request.expert_id] += tokens - prompt
        if timings.scheduled_s is not None:
            self.hits += timings.hit
            self.misses += not timings.hit
        if timings.first_token_s is not None:
            self.last_end_s[request.expert_id] = timings.end_s
            self.by_priority[priority_class(request.priority)].ttft.add(timings.first_token_s - timings.arrival_s)
            later = tokens - prompt - 1
            if later > 0:
                self.tpot.add((timings.end_s - timings.first_token_s) / later)

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {reason}" for reason, count in sorted(self.finished.items())) or "none"
        return (
            f"requests {self.submitted} submitted, {self.admitted} admitted, ended: {ends}\n"
            f"tokens {self.prompt_tokens} of prompts ({self.cached_tokens} cached), {self.drawn_tokens} drawn, "
            f"in {self.steps} steps ({self.accepted_tokens} of {self.guessed_tokens} drafts accepted)\n"
            f"experts {self.hits} hits, {self.misses} misses, {self.switches} switches ({self.switch}), "
            f"{self.failed_fetches} failed\n"
            f"TTFT {self.ttft}, TPOT {self.tpot}"
        )
