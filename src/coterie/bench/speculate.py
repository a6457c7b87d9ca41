"""Speculative decoding: the end-to-end gain for one user, on answers that repeat at a set rate or are constrained.

    round:  without | with drafts      for each share and form; both answers must be identical

Knows nothing about how tokens are drafted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, TypeAlias

from rich.table import Table

from coterie.api import Coterie, Options, Query
from coterie.api.types import Message
from coterie.bench.experts import packed_expert
from coterie.bench.formed import END_ID, FORMS, forming_expert
from coterie.bench.repeating import FEW, Ring, repeating_expert
from coterie.bench.report import Effort, Report, Spread, interleave, paired_ratio
from coterie.bench.shapes import shape_config, with_context
from coterie.checkpoint.grammar import Grammar, grammar_of
from coterie.composition.composition import Composition
from coterie.composition.expert import Expert
from coterie.core.sampling import PartialSampling
from coterie.devices.cpu.device import CpuDevice
from coterie.engine.assembly import Parts, Settings, page_bytes, plan, wire
from coterie.engine.policy import MAX_GUESSES, Policy
from coterie.engine.request import ChoiceParams, Request, SamplingParams
from coterie.models.model import Model

ANSWER_TOKENS = 128
FORM_TOKENS = 320  # upper bound for a constrained answer
SHARES = (1.0, 0.95, 0.8, 0.5, 0.0)  # how often a token follows its predecessor as it did before; 0: nothing repeats
PLAIN, GUESSED = "without", "with"
_Counts: TypeAlias = tuple[int, int, int, int]  # tokens guessed, guessed right, sampled, and the steps for these
PROMPTS = {
    "code": "Write a Python class for a stack of numbers with push, pop, peek and a running maximum.",
    "prose": "Describe how bread is made, from grain to loaf.",
    "a list": "Count from 1 to 60, separated by commas.",
}
COLUMNS = ("drafted", "accepted", "tokens a step", "tokens/s", "speculating", "gain", "CPU time")


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer, with wall-clock and CPU seconds per token."""

    tokens: tuple[int, ...]
    seconds: float
    cpu_s: float


@dataclass(slots=True)
class _Way:
    """An engine with or without speculation."""

    device: CpuDevice
    parts: Parts
    num_requests: int = 0

    def answer(self, make_request: Callable[[int], Request]) -> _Answer:
        """Answer request number `self.num_requests`, then count it up. The times exclude the first step with tokens."""
        engine, tokens, start = self.parts.engine, tuple[int, ...](), (0.0, 0.0, 0)
        engine.submit(make_request(self.num_requests))
        self.num_requests += 1
        while not engine.idle:
            for output in engine.step():
                tokens += output.token_ids
            if tokens and not start[2]:
                start = perf_counter(), process_time(), len(tokens)
        count = max(len(tokens) - start[2], 1)
        return _Answer(tokens, (perf_counter() - start[0]) / count, (process_time() - start[1]) / count)


def speculate(shape: str, threads: int | None, effort: Effort, weights: str = "bf16") -> Report:
    """Measure with and without speculation, at each share and with each form. Raises UsageError, CapacityError."""
    config = with_context(shape_config(shape), FEW + FORM_TOKENS)
    with (
        repeating_expert(config) as (plain, ring),
        packed_expert(plain, weights) as model,
        _ways(model, threads) as ways,
    ):
        rows = []
        for share in SHARES:
            row, answers = _row(ways, partial(_of_ring, ring, share), effort)
            kept = [ring.num_following(tokens) for tokens in answers]
            rows.append({"share": share, "repeats": sum(kept) / len(kept) / (ANSWER_TOKENS - 1), **row})
        cpus = ways[PLAIN].device.threads
    with forming_expert(config) as (plain, tokenizer), packed_expert(plain, weights) as model:
        grammar, forms = grammar_of(tokenizer, model.config.vocab_size, (END_ID,)), []
        for name, schema in FORMS.items():
            with _ways(model, threads) as ways:  # new engines, so that nothing learnt from one form helps another
                make_request = partial(_of_form, grammar, json.dumps(schema))
                forms.append({"form": name, **_row(ways, make_request, effort)[0]})
    workload = {"shape": shape, "weights": f"made-up {weights}", "prompt": FEW, "answer": ANSWER_TOKENS}
    values = {"shares": rows, "forms": forms}
    tables = (
        _table(("repeats",), rows, lambda row: (f"{row['repeats']:.2f}",)),
        _table(("form", "tokens"), forms, lambda row: (row["form"], f"{row['answer_tokens']:.0f}")),
    )
    return Report("speculate", {**workload, "threads": cpus}, values, tables, _notes(rows))


def drafted(checkpoint: Path, draft: Path, threads: int | None, effort: Effort) -> Report:
    """Measure an expert with and without a draft, by one prompt of each kind. Raises CoterieError."""
    large, small = Expert("large", checkpoint.resolve()), Expert("small", draft.resolve())
    with ExitStack() as stack:
        ways = {}
        for name, drafting in ((PLAIN, ""), (GUESSED, "small")):
            pair = Composition("pair", (replace(large, draft=drafting), small), None, Path.cwd())
            ways[name] = stack.enter_context(Coterie(pair, Options(threads=threads)))
        ways[GUESSED].load("small")
        rows = [{"prompt": kind, **_compare_prompt(ways, prompt, effort)} for kind, prompt in PROMPTS.items()]
    workload = {"checkpoint": checkpoint.name, "draft": draft.name, "answer": ANSWER_TOKENS, "threads": threads}
    table = _table(("prompt",), rows, lambda row: (row["prompt"],))
    note = "one user, greedy, the same answer both ways; prompt lookup drafts in both, and is not counted here"
    return Report("draft", workload, {"prompts": rows}, (table,), (note,))


def _compare_prompt(ways: dict[str, Coterie], prompt: str, effort: Effort) -> dict[str, Any]:
    query = Query((Message("user", prompt),), "large", PartialSampling(temperature=0.0), ANSWER_TOKENS)

    def answer(name: str) -> _Answer:
        start = perf_counter(), process_time()
        tokens = ways[name].ask(query).token_ids
        count = len(tokens)
        return _Answer(tokens, (perf_counter() - start[0]) / count, (process_time() - start[1]) / count)

    metrics = ways[GUESSED].parts.engine.metrics

    def counts() -> _Counts:
        drafts = metrics.drafted_tokens, metrics.accepted_drafted_tokens
        return (*drafts, metrics.drawn_tokens, metrics.steps)

    return _compared({name: partial(answer, name) for name in ways}, counts, effort)[0]


def _row(
    ways: dict[str, _Way], make_request: Callable[[int], Request], effort: Effort
) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
    metrics = ways[GUESSED].parts.engine.metrics

    def counts() -> _Counts:
        guesses, drawn = (metrics.guessed_tokens, metrics.accepted_tokens), metrics.drawn_tokens
        return (*guesses, drawn, drawn - metrics.accepted_tokens)

    return _compared({name: partial(way.answer, make_request) for name, way in ways.items()}, counts, effort)


def _compared(
    ways: Mapping[str, Callable[[], _Answer]], counts: Callable[[], _Counts], effort: Effort
) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
    """Interleave both ways: the gain from speculation, and the answers. Raises RuntimeError if these differ."""
    answers: dict[str, list[_Answer]] = {name: [] for name in ways}

    def seconds(name: str) -> float:
        answers[name].append(ways[name]())
        return answers[name][-1].seconds

    before = counts()
    samples = interleave({name: partial(seconds, name) for name in ways}, effort)
    tokens = {name: [answer.tokens for answer in each] for name, each in answers.items()}
    if tokens[PLAIN] != tokens[GUESSED]:
        raise RuntimeError("an answer with speculation differs from the one without")
    gain = paired_ratio(samples[PLAIN], samples[GUESSED])
    cpu = paired_ratio(*[[answer.cpu_s for answer in answers[name][1:]] for name in (PLAIN, GUESSED)])
    guessed, right, drawn, steps = (now - then for now, then in zip(counts(), before, strict=True))
    row = {
        "answer_tokens": drawn / len(tokens[GUESSED]),
        "tokens_per_s": {name: 1 / median(samples[name]) for name in ways},
        **gain.plain("gain"),
        **cpu.plain("cpu_gain"),
        "guessed_per_token": guessed / drawn,
        "accepted": right / guessed if guessed else 0.0,
        "tokens_per_step": drawn / steps,
        "rounds": len(samples[PLAIN]),
    }
    return row, tokens[GUESSED]


def _of_ring(ring: Ring, share: float, number: int) -> Request:
    start = number % FEW
    prompt, sampling = ring.tokens[start:] + ring.tokens[:start], ring.sampling(share, 1 + number)
    return Request(f"r{number}", "one", prompt, ANSWER_TOKENS, sampling, ignore_end=True, reuse=False)


def _of_form(grammar: Grammar, schema: str, number: int) -> Request:
    prompt = tuple(range(1 + number, 1 + number + FEW))
    sampling, choice = SamplingParams(1.0, seed=number), ChoiceParams(mask=grammar.mask(schema))
    return Request(f"r{number}", "one", prompt, FORM_TOKENS, sampling, end_ids=(END_ID,), reuse=False, choice=choice)


@contextmanager
def _ways(model: Model, threads: int | None) -> Iterator[dict[str, _Way]]:
    with ExitStack() as stack:
        ways = {}
        for name, guesses in ((PLAIN, 0), (GUESSED, MAX_GUESSES)):
            device = CpuDevice(threads=threads)
            stack.callback(device.close)
            ways[name] = _Way(device, _wired(model, device, guesses))
        yield ways


def _wired(model: Model, device: CpuDevice, guesses: int) -> Parts:
    block = page_bytes(model.kv)
    blocks = model.kv.blocks_for(FEW + FORM_TOKENS, block)
    settings = Settings(kv_bytes=blocks * block, policy=Policy(max_guesses=guesses))
    models = {"one": model}
    return wire(models, plan(models, device.spec, settings), settings, device)


def _table(
    heads: tuple[str, ...], rows: list[dict[str, Any]], first: Callable[[dict[str, Any]], tuple[str, ...]]
) -> Table:
    """A table of rows, each with the cells `first` gives, then the gain from speculation."""
    table = Table(*heads, *COLUMNS)
    for row in rows:
        table.add_row(*first(row), *_cells(row))
    return table


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    rates = [f"{row['tokens_per_s'][name]:.1f}" for name in (PLAIN, GUESSED)]
    counts = f"{row['guessed_per_token']:.2f}", f"{row['accepted']:.2f}", f"{row['tokens_per_step']:.2f}"
    return (*counts, *rates, str(Spread.read(row, "gain")), f"{1 / row['cpu_gain']:.2f}")


def _notes(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return (
        "form: of a schema, of which an expert that writes the longest token where few may come chooses the values",
        f"repeats: the share of tokens that came behind the same one before, in a ring of {FEW} that the prompt has",
        "drafted: tokens for each token; accepted: the share of them. CPU time: with speculation, over without",
        f"one user, {ANSWER_TOKENS} tokens, the same both ways; {min(row['rounds'] for row in rows)} rounds or more, "
        "interleaved; gain: time without speculation over time with it, in brackets quartiles. Answers are no text",
    )
