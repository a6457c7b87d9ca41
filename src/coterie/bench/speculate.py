"""Guessed tokens: what guessing ahead gives one user, end to end, where an answer repeats as much as is wanted.

    round:  without | with guesses     of each share in turn: the same answer both times, to the token

Knows nothing about how guesses are made.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter, process_time
from typing import Any

from rich.table import Table

from coterie.bench.experts import packed_expert
from coterie.bench.repeating import FEW, Ring, repeating_expert
from coterie.bench.report import Effort, Report, Spread, interleave, paired_ratio
from coterie.bench.shapes import shape_config, with_context
from coterie.devices.cpu import CpuDevice
from coterie.engine.assembly import Parts, Settings, page_bytes, plan, wire
from coterie.engine.policy import MAX_GUESSES, Policy
from coterie.engine.request import Request
from coterie.models.model import Model

ANSWER_TOKENS = 128
SHARES = (1.0, 0.95, 0.8, 0.5, 0.0)  # how often, about, the token comes that came before; 0: nothing repeats
PLAIN, GUESSED = "without", "with"


@dataclass(slots=True)
class _Way:
    """An engine with or without guesses. Of its last answer: its tokens; of all of them: seconds of CPU a token.

    `kept`: tokens that came again after the same one.
    """

    parts: Parts
    tokens: tuple[int, ...] = ()
    cpu_s: list[float] = field(default_factory=list)
    asked: int = 0
    kept: int = 0

    def seconds(self, ring: Ring, share: float) -> float:
        """Answer once; seconds for each token but the first ones."""
        engine, start = self.parts.engine, self.asked % FEW
        self.tokens, begun = (), (0.0, 0.0, 0)
        prompt = ring.tokens[start:] + ring.tokens[:start]
        self.asked += 1
        sampling = ring.sampling(share, self.asked)
        engine.submit(Request(f"r{self.asked}", "one", prompt, ANSWER_TOKENS, sampling, ignore_end=True, reuse=False))
        while not engine.idle:
            for output in engine.step():
                self.tokens += output.token_ids
            if self.tokens and not begun[2]:
                begun = perf_counter(), process_time(), len(self.tokens)
        self.kept += ring.kept((prompt[-1], *self.tokens))
        count = ANSWER_TOKENS - begun[2]
        self.cpu_s.append((process_time() - begun[1]) / count)
        return (perf_counter() - begun[0]) / count


def speculate(shape: str, threads: int | None, effort: Effort, weights: str = "bf16") -> Report:
    """Measure both ways at each share. Raises UsageError, CapacityError."""
    config = with_context(shape_config(shape), FEW + ANSWER_TOKENS)
    with repeating_expert(config) as (plain, ring), packed_expert(plain, weights) as model, ExitStack() as stack:
        ways = {}
        for name, guesses in ((PLAIN, 0), (GUESSED, MAX_GUESSES)):
            device = CpuDevice(threads=threads)
            stack.callback(device.close)
            ways[name] = _Way(_wired(model, device, guesses))
        rows = [_row(ways, ring, share, effort) for share in SHARES]
        cpus = device.threads
    workload = {"shape": shape, "weights": f"made-up {weights}", "prompt": FEW, "answer": ANSWER_TOKENS}
    return Report("speculate", {**workload, "threads": cpus}, {"shares": rows}, (_table(rows),), _notes(rows))


def _wired(model: Model, device: CpuDevice, guesses: int) -> Parts:
    block = page_bytes(model.kv)
    blocks = model.kv.blocks_for(FEW + ANSWER_TOKENS, block)
    settings = Settings(kv_bytes=blocks * block, policy=Policy(max_guesses=guesses))
    models = {"one": model}
    return wire(models, plan(models, device.spec, settings), settings, device)


def _row(ways: dict[str, _Way], ring: Ring, share: float, effort: Effort) -> dict[str, Any]:
    metrics = ways[GUESSED].parts.engine.metrics
    before = metrics.guessed_tokens, metrics.accepted_tokens, metrics.drawn_tokens
    for way in ways.values():
        way.cpu_s.clear()
        way.kept = 0
    samples = interleave({name: partial(way.seconds, ring, share) for name, way in ways.items()}, effort)
    if ways[PLAIN].tokens != ways[GUESSED].tokens:
        raise RuntimeError("an answer with guesses is another one")
    gain = paired_ratio(samples[PLAIN], samples[GUESSED])
    cpu = paired_ratio(ways[PLAIN].cpu_s[1:], ways[GUESSED].cpu_s[1:])
    guessed, accepted = metrics.guessed_tokens - before[0], metrics.accepted_tokens - before[1]
    drawn = metrics.drawn_tokens - before[2]
    return {
        "share": share,
        "repeats": ways[GUESSED].kept / drawn,
        "tokens_per_s": {name: 1 / median(samples[name]) for name in ways},
        "gain": gain.median,
        "gain_quartiles": [gain.low, gain.high],
        "cpu_gain": cpu.median,
        "cpu_gain_quartiles": [cpu.low, cpu.high],
        "guessed_per_token": guessed / drawn,
        "accepted": accepted / guessed if guessed else 0.0,
        "tokens_per_step": drawn / (drawn - accepted),
        "rounds": len(samples[PLAIN]),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("repeats", "guesses", "right", "tokens a step", "tokens/s", "with guesses", "gain", "CPU time")
    for row in rows:
        rates = [f"{row['tokens_per_s'][name]:.1f}" for name in (PLAIN, GUESSED)]
        gain = Spread(row["gain"], *row["gain_quartiles"])
        counts = f"{row['guessed_per_token']:.2f}", f"{row['accepted']:.2f}", f"{row['tokens_per_step']:.2f}"
        table.add_row(f"{row['repeats']:.2f}", *counts, *rates, str(gain), f"{1 / row['cpu_gain']:.2f}")
    return table


def _notes(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return (
        f"repeats: the share of tokens that came behind the same one before, in a ring of {FEW} that the prompt has",
        "guesses: for each token; right: the share of them that was drawn. CPU time: with guesses, over without",
        f"one user, {ANSWER_TOKENS} tokens, the same both ways; {min(row['rounds'] for row in rows)} rounds or more, "
        "interleaved; gain: time without guesses over time with them, in brackets quartiles. Answers are no text",
    )
