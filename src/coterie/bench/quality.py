"""How quantised weights and rounded activations change answers: perplexity and agreement on the expert's own answers.

    question -> the unquantised expert's answer -> each variant predicts each token of it (teacher forcing)

Each variant runs in the NumPy reference, so that nothing else differs. Activations for quantised weights are rounded as
on a CPU, to 16 bits or 12, or to 8 if the name says so; those for bfloat16 weights are float32, or bfloat16 if the name
says so. If every predicted token agrees, greedy decoding gives the same answer.
Knows nothing about speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from coterie.api import Coterie, Message, Options, Query
from coterie.api.assemble import open_models
from coterie.api.compare import reference_inputs
from coterie.api.texts import open_texts
from coterie.bench.experts import random_experts
from coterie.bench.report import Report
from coterie.bench.shapes import shape_config
from coterie.composition.composition import load_composition
from coterie.composition.evaluate import read_questions
from coterie.composition.router import Prompt
from coterie.core.dtypes import DType
from coterie.device import prompt_rows
from coterie.graph.ops import BF16, INT8, INT16
from coterie.graph.reference import KvState, Reference
from coterie.graph.rounding import with_rounding
from coterie.models.model import FLOAT32, Model, load_weights_f32, open_model, with_activations
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

PACKINGS: Mapping[str, Packing] = {
    "int8": Packing(DType.Q8, DType.Q8),
    "int4, embedding and head int8": Packing(DType.Q4, DType.Q8),
    "int4": Packing(DType.Q4, DType.Q4),
    "int4z, embedding and head int8": Packing(DType.Q4Z, DType.Q8),
}
ROUNDED = " + int8 activations"
PLAIN = "unquantised"
BF16_ACTIVATIONS = f"{PLAIN} + bf16 activations"
VARIANTS = (BF16_ACTIVATIONS, *(name + more for name in PACKINGS for more in ("", ROUNDED)))
QUESTIONS, RANDOM_SEQUENCES, RANDOM_TOKENS = "questions.jsonl", 8, 64
_Text = tuple[tuple[int, ...], int]  # tokens, and how many of them are the prompt


@dataclass(slots=True)
class _Sums:
    """Running sums of one variant over predicted tokens."""

    tokens: int = 0
    surprise: float = 0.0
    divergence: float = 0.0
    agreed: int = 0
    texts: int = 0
    equal: int = 0

    def result(self) -> dict[str, float | int]:
        return {
            "perplexity": float(np.exp(self.surprise / self.tokens)),
            "kl_divergence": self.divergence / self.tokens,
            "top1_agreement": self.agreed / self.tokens,
            "greedy_answers_equal": self.equal / self.texts,
            "tokens": self.tokens,
            "answers": self.texts,
        }


@dataclass(slots=True)
class _Tally:
    """The sums of all variants."""

    of: dict[str, _Sums] = field(default_factory=lambda: {name: _Sums() for name in (PLAIN, *VARIANTS)})

    def add(self, name: str, logits: npt.NDArray[np.float32], plain: npt.NDArray[np.float32], text: _Text) -> None:
        """Add the predictions of the answer's tokens: `logits` of the variant, `plain` of the unquantised expert."""
        ids, first = text
        said, meant = log_softmax(logits[first - 1 : -1]), log_softmax(plain[first - 1 : -1])
        answer = np.array(ids[first:])
        sums, same = self.of[name], said.argmax(axis=1) == meant.argmax(axis=1)
        sums.tokens += len(answer)
        sums.surprise -= float(said[np.arange(len(answer)), answer].sum())
        sums.divergence += float((np.exp(meant) * (meant - said)).sum())
        sums.agreed += int(same.sum())
        sums.texts += 1
        sums.equal += bool(same.all())


def quality(per_expert: int, shape: str) -> Report:
    """Compare variants on the demo's experts and on a random model of `shape`. Raises UsageError, CapacityError."""
    demo, random = _Tally(), _Tally()
    experts = 0
    for model, texts in _demo_texts(per_expert):
        _compare(model, texts, demo)
        experts += 1
    with random_experts(shape_config(shape), 1) as (model,):
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, model.config.vocab_size, (RANDOM_SEQUENCES, RANDOM_TOKENS))
        _compare(model, [(tuple(map(int, row)), 1) for row in drawn], random)
    results = {
        "demo": {name: sums.result() for name, sums in demo.of.items()},
        "random": {name: sums.result() for name, sums in random.of.items()},
    }
    workload = {"demo_experts": experts, "questions_per_expert": per_expert, "random_shape": shape}
    notes = (
        "the text judged is the unquantised expert's own greedy answer; of the random model, random tokens",
        "activations of products with packed weights are rounded to 16 bits, 12 for int4, or 8 where named",
        "those of products with bfloat16 weights are float32, or bfloat16 where named",
        "agreement: the same most likely next token; answers equal: at every place, so greedy decoding gives the same",
    )
    return Report("quality", workload, results, tuple(_table(name, rows) for name, rows in results.items()), notes)


def _demo_texts(per_expert: int) -> Iterator[tuple[Model, list[_Text]]]:
    """Each demo expert with its first questions and its own answers to them."""
    composition = load_composition("demo")
    models = open_models(composition, Options(activations=FLOAT32))
    templates = open_texts(models)
    asked: dict[str, list[Query]] = {}
    for question in read_questions(composition.root / QUESTIONS):
        if question.expert is not None:
            queries = asked.setdefault(question.expert, [])
            if len(queries) < per_expert:
                queries.append(Query((Message("user", question.text),), question.expert))
    with Coterie.open("demo") as coterie:
        for name, queries in asked.items():
            texts = []
            for query, answer in zip(queries, coterie.ask_all(queries), strict=True):
                prompt = Prompt.from_messages([m.to_dict() for m in query.messages])
                ids = templates[name].encode(query, prompt)
                texts.append(((*ids, *answer.token_ids), len(ids)))
            yield models[name], texts


def _compare(model: Model, texts: Sequence[_Text], tally: _Tally) -> None:
    plain = [_logits(reference, model, ids) for reference in (_reference(model),) for ids, _ in texts]
    rounded = with_activations(model, BF16)
    reference = _reference(rounded)
    for text, logits in zip(texts, plain, strict=True):
        tally.add(PLAIN, logits, logits, text)
        tally.add(BF16_ACTIVATIONS, _logits(reference, rounded, text[0]), logits, text)
    with tempfile.TemporaryDirectory(prefix="coterie-bench-") as folder:
        for number, (name, packing) in enumerate(PACKINGS.items()):
            packed = open_model(quantize_folder(model.checkpoint.path, Path(folder) / str(number), packing).folder)
            for variant, to in ((name, INT16), (name + ROUNDED, INT8)):
                read = replace(packed, graph=with_rounding(packed.graph, to))
                reference = _reference(read)
                for text, logits in zip(texts, plain, strict=True):
                    tally.add(variant, _logits(reference, read, text[0]), logits, text)


def _reference(model: Model) -> Reference:
    return Reference(model.graph, load_weights_f32(model))


def _logits(reference: Reference, model: Model, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits after each token [T, V]."""
    rows = prompt_rows(ids, 1, scored=True)
    values = reference.run(reference_inputs(rows), rows.sampling, KvState(model.graph, 1, len(ids)))
    name = next(op for op in model.graph.ops if op.kind == "sample").inputs[0]
    return np.asarray(values[name], np.float32)


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log probabilities of rows of logits, in float64, to resolve divergences of 1e-10."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _table(name: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(f"weights ({name})", "perplexity", "KL divergence", "next token agrees", "answers equal")
    for variant, row in rows.items():
        shares = (f"{row['top1_agreement']:.2%}", f"{row['greedy_answers_equal']:.1%}")
        table.add_row(variant, f"{row['perplexity']:.5g}", f"{row['kl_divergence']:.2e}", *shares)
    return table
