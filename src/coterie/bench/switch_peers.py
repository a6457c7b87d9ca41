"""Switching compared with other engines: cold, from disk to the first token; warm, between two models used before.

    cold    page cache dropped; ours: want -> first token         theirs: open -> prefill -> first token
    warm    ours: both resident, first token of the other         theirs: open from the page cache; or both held open

Knows nothing about any engine in particular.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from coterie.bench.limits import drop_page_cache
from coterie.bench.peers.best import TRIALS, Chosen, Work, choose, prepared_peer, seconds_of
from coterie.bench.peers.peer import Peer, Session, Settings
from coterie.bench.report import Effort, interleave, paired_ratio
from coterie.bench.step import prompt_ids
from coterie.bench.switch_serve import ask, serve_models, ttft
from coterie.checkpoint.folder import SINGLE
from coterie.models.model import Model

WARM_PROMPT = 1  # so that a long prompt does not hide a switch between models in memory

Way = Callable[[int], float]
"""Number of a turn -> its seconds; each turn switches to the other model."""


@dataclass(frozen=True, slots=True)
class Reload:
    """A peer that switches between two models, by opening them again or by keeping both open."""

    peer: Peer
    settings: Settings
    prepared: tuple[Path, ...]
    prompt: list[int]

    def cold(self, turn: int) -> float:
        """Seconds from open to the first token, with nothing in the page cache; closing is not counted."""
        drop_page_cache(*self.peer.files(self.prepared[turn % len(self.prepared)]))
        return self.from_pages(turn)

    def reload(self, turn: int) -> float:
        """Seconds from open to the first token, from the page cache, with a prompt of one token."""
        return self._open_and_prefill(self.prepared[turn % len(self.prepared)], self.prompt[:WARM_PROMPT])

    def from_pages(self, turn: int) -> float:
        """Seconds from open to the first token, from the page cache."""
        return self._open_and_prefill(self.prepared[turn % len(self.prepared)], self.prompt)

    def opened(self, peer: Peer, stack: ExitStack) -> tuple[Session, ...]:
        """Both models open until the stack closes."""
        sessions = []
        for path in self.prepared:
            sessions.append(peer.open(path, self.settings, len(self.prompt) + 1))
            stack.callback(sessions[-1].close)
        return tuple(sessions)

    def both_open(self, stack: ExitStack) -> Way:
        """Seconds to prefill one token on the model not used last, both held open until the stack closes."""
        sessions, prompt = self.opened(self.peer, stack), self.prompt[:WARM_PROMPT]
        return lambda turn: seconds_of(lambda: sessions[turn % len(sessions)].prefill(prompt))

    def _open_and_prefill(self, path: Path, prompt: Sequence[int]) -> float:
        return first_token_s(self.peer, path, self.settings, len(self.prompt) + 1, prompt)


def first_token_s(peer: Peer, path: Path, settings: Settings, max_tokens: int, prompt: Sequence[int]) -> float:
    """Seconds from opening a model to a prompt's first token in Python; closing it is not counted."""
    opened: list[Session] = []

    def work() -> None:
        opened.append(peer.open(path, settings, max_tokens))
        opened[0].prefill(prompt)

    try:
        return seconds_of(work)
    finally:
        for session in opened:
            session.close()


def switch_peers(
    models: tuple[Model, Model], prompt_tokens: int, threads: int | None, effort: Effort, peers: Sequence[Peer]
) -> dict[str, Any]:
    """Our cold and warm switches and each peer's, in the same rounds: a row per peer; empty without peers."""
    if not peers:
        return {}
    with ExitStack() as stack:
        near = _Ours(stack, models, 1, prompt_tokens, threads)
        wide = _Ours(stack, models, len(models), prompt_tokens, threads)
        cpus = near.threads
        prompt = prompt_ids(models[0], prompt_tokens)
        others = {peer.name: _best_reload(stack, peer, models, prompt, cpus) for peer in peers}
        ways: dict[str, Callable[[], float]] = {"cold": turns(near.cold), "warm": turns(wide.warm)}
        for name, other in others.items():
            ways |= {f"{name} cold": turns(other.cold), f"{name} reload": turns(other.reload)}
        samples = interleave(ways, effort)
        # Last, since a file that a session has mapped cannot be dropped from the page cache.
        ways = {"warm beside open": turns(wide.warm)}
        ways |= {f"{name} both open": turns(other.both_open(stack)) for name, other in others.items()}
        samples |= interleave(ways, effort)
    return {name: _row(samples, name, other) for name, other in others.items()}


class _Ours:
    """Our engine with room for `residents` experts, asked for the two models in turn."""

    def __init__(
        self, stack: ExitStack, models: tuple[Model, ...], residents: int, prompt_tokens: int, threads: int | None
    ) -> None:
        self._parts, device = serve_models(models, residents, prompt_tokens + 1, threads)
        stack.callback(device.close)
        self.threads = device.threads
        self._models, self._prompt_tokens, self._ids = models, prompt_tokens, count()

    def cold(self, turn: int) -> float:
        """Seconds from the request to its first token, with the expert's file dropped from the page cache."""
        model = self._models[turn % len(self._models)]
        drop_page_cache(model.checkpoint.path / SINGLE)
        return ttft(ask(self._parts, model, f"{next(self._ids)}", self._prompt_tokens))

    def warm(self, turn: int) -> float:
        """Seconds from the request to its first token, with a prompt of one token and both experts resident."""
        return ttft(ask(self._parts, self._models[turn % len(self._models)], f"{next(self._ids)}", WARM_PROMPT))


def turns(way: Way) -> Callable[[], float]:
    """A function that takes turn 0, 1, 2, ..., one per call."""
    numbers = count()
    return lambda: way(next(numbers))


def _best_reload(stack: ExitStack, peer: Peer, models: tuple[Model, ...], prompt: list[int], cpus: int) -> Reload:
    """The peer with the precision that prefills fastest and the load mode that is fastest from a cold disk."""
    room = len(prompt) + 1
    prepared = stack.enter_context(prepared_peer(peer, models[0].checkpoint.path, "bf16"))
    chosen = choose(peer, prepared, cpus, room, Work(lambda session: session.prefill(prompt)))
    if chosen is None:
        raise AssertionError(f"{peer.name} has no bf16 precision")
    out = Path(stack.enter_context(TemporaryDirectory(prefix="coterie-peer-")))
    second = peer.prepare(models[1].checkpoint.path, out / chosen.precision, chosen.precision)
    paths = (chosen.prepared, second)
    os.sync()  # dirty pages cannot be dropped from the page cache
    settings = _best_load(peer, chosen, paths, prompt, cpus)
    return Reload(peer, settings, paths, prompt)


def _best_load(peer: Peer, chosen: Chosen, paths: tuple[Path, ...], prompt: list[int], cpus: int) -> Settings:
    loads = dict.fromkeys(settings.load for settings in peer.candidates(cpus))
    trials = [Reload(peer, replace(chosen.settings, load=load), paths, prompt) for load in loads]
    return min(trials, key=lambda trial: min(trial.cold(turn) for turn in range(TRIALS))).settings


def _row(samples: Mapping[str, list[float]], name: str, other: Reload) -> dict[str, Any]:
    cold = paired_ratio(samples[f"{name} cold"], samples["cold"])
    warm = paired_ratio(samples[f"{name} reload"], samples["warm"])
    return {
        "ours_cold_ttft_s": median(samples["cold"]),
        "ours_warm_ttft_s": median(samples["warm"]),
        "cold_ttft_s": median(samples[f"{name} cold"]),
        "reload_s": median(samples[f"{name} reload"]),
        "both_open_s": median(samples[f"{name} both open"]),
        **cold.plain("ratio"),
        **warm.plain("warm_ratio"),
        "both_open_ratio": paired_ratio(samples[f"{name} both open"], samples["warm beside open"]).median,
        "settings": str(other.settings),
    }
