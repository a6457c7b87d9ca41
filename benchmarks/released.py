"""Whether a released model's numbers are right here, and what packing its weights does to them, on one's own files.

    GGUF file  ->  its weights as float32: the base   <-  as imported; llama.cpp and transformers on the same model
    folder     ->  its weights as float32: the base   <-  packed in each way, with 16-bit or 8-bit activations; or bf16

    python -m benchmarks.released MODEL... --text FILE [--tokens 4096] [--window 512]
        [--packing int8 ...] [--peer llama.cpp] [--peer transformers] [--questions FILE.jsonl] [--folder DIR]

Every row reads the same windows of the text. It reports perplexity on the text and, compared with the base, the KL
divergence, the share of tokens after which both predict the same next one, and the largest difference between logits,
relative to the largest logit. Questions are JSON lines {"prompt": ..., "choices": [...], "answer": 0}: a model takes
the choice with the largest log probability, or the largest per character, from the prompt logprobs of Coterie's
answers. Folders are written to DIR, or to a temporary one; they take 4 bytes per weight, plus each packing.
Knows nothing about families or about how anything is packed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from benchmarks import markdown

from coterie.api import Coterie, Message, Options, Query
from coterie.bench.peers.llama_cpp import LlamaCpp
from coterie.bench.peers.peer import Settings
from coterie.bench.quality import log_softmax
from coterie.bench.step import on_cpu
from coterie.checkpoint.folder import SINGLE
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.dtypes import DType, from_f32
from coterie.core.errors import UsageError
from coterie.engine.request import ChoiceParams
from coterie.graph.ops import BF16, INT8, INT16
from coterie.models.gguf.convert import import_gguf, plan_import
from coterie.models.model import open_model, weight_rows_f32, with_activations
from coterie.models.new_folder import Entry, copy_other_files, new_folder, write_config, write_tensors
from coterie.models.packing import KEY, Packing
from coterie.models.quantize import quantize_folder

F32 = npt.NDArray[np.float32]
Logits = Callable[[Sequence[int]], Iterator[F32]]

LLAMA_CPP, TRANSFORMERS = "llama.cpp", "transformers"
PACKINGS: Mapping[str, Packing] = {
    "int8": Packing(DType.Q8, DType.Q8),
    "int4z": Packing(DType.Q4Z, DType.Q8),
    "int4": Packing(DType.Q4, DType.Q8),
    "mxfp4": Packing(DType.MX4, DType.Q8),
    "int2": Packing(DType.Q2, DType.Q8),
}
HALVES = "bf16"  # not packed: all weights as bfloat16, with float32 or bfloat16 activations
_PIECE = 128  # tokens whose logits are computed at once


@dataclass(slots=True)
class Sums:
    """Running sums of one row over the tokens of all windows.

    `apart`: largest difference from the base's logits; `largest`: the largest absolute logit of the base.
    """

    tokens: int = 0
    followed: int = 0
    surprise: float = 0.0
    divergence: float = 0.0
    agreed: int = 0
    apart: float = 0.0
    largest: float = 0.0

    def add(self, ours: F32, base: F32, follow: npt.NDArray[np.int64]) -> None:
        """Add logits [tokens, V], compared with the base's; `follow`: the next tokens (the last one may have none)."""
        said, meant = log_softmax(ours), log_softmax(base)
        self.tokens += len(ours)
        self.followed += len(follow)
        self.surprise -= float(said[np.arange(len(follow)), follow].sum())
        self.divergence += float((np.exp(meant) * (meant - said)).sum())
        self.agreed += int((ours.argmax(axis=1) == base.argmax(axis=1)).sum())
        self.apart = max(self.apart, float(np.abs(ours - base).max()))
        self.largest = max(self.largest, float(np.abs(base).max()))

    def to_dict(self) -> dict[str, float | int]:
        """The row's results."""
        return {
            "perplexity": float(np.exp(self.surprise / self.followed)),
            "kl_divergence": self.divergence / self.tokens,
            "top1_agreement": self.agreed / self.tokens,
            "largest_difference": self.apart / self.largest,
            "tokens": self.tokens,
        }


@dataclass(slots=True)
class Judged:
    """One model's rows: the windows of the text, the base's logits (memory-mapped), and the results by row."""

    windows: list[list[int]]
    base: npt.NDArray[np.float32]
    rows: dict[str, dict[str, float | int]] = field(default_factory=dict)

    def judge(self, name: str, logits: Logits) -> None:
        """Run all windows and add a row. The first row is the base."""
        sums, is_base, at = Sums(), not self.rows, 0
        for ids in self.windows:
            follow, first = np.asarray(ids[1:]), 0
            for piece in logits(ids):
                end = at + len(piece)
                if is_base:
                    self.base[at:end] = piece
                sums.add(piece, self.base[at:end], follow[first : first + len(piece)])
                at, first = end, first + len(piece)
        self.rows[name] = sums.to_dict()
        found = self.rows[name]
        print(f"  {name}: perplexity {found['perplexity']:.4f}, KL {found['kl_divergence']:.6f}", flush=True)


def compare(model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one model, and its scores on questions. Raises UsageError and what opening it raises."""
    print(model, flush=True)
    experts: dict[str, Path] = {}
    source, base = model, folder / "float32"
    if model.suffix == ".gguf":
        source = experts["imported"] = folder / "imported"
        if not source.exists():
            import_gguf(plan_import(model), source)
    if not base.exists():
        write_plain(model, source, base)
    for name in options.packing or ():
        experts[name] = folder / name
        if experts[name].exists():
            continue
        if name == HALVES:
            write_plain(model, source, experts[name], DType.BF16)
        else:
            quantize_folder(base, experts[name], PACKINGS[name])
    windows = windows_of(source, options.text, options.tokens, options.window)
    vocabulary = open_model(base).config.vocab_size
    with TemporaryDirectory(dir=folder) as scratch:
        shape = sum(map(len, windows)), vocabulary
        kept = np.memmap(Path(scratch) / "logits", np.float32, "w+", shape=shape)
        judged = Judged(windows, np.asarray(kept))
        with _ours(base, INT16, options.window) as logits:
            judged.judge("float32", logits)
        for name, expert in experts.items():
            for activations in _activations(expert):
                with _ours(expert, activations, options.window) as logits:
                    judged.judge(_row(name, activations), logits)
        for peer in options.peer or ():
            with _PEERS[peer](model, base, options.window) as logits:
                judged.judge(peer, logits)
    asked = {} if options.questions is None else _asked({"float32": base} | experts, options.questions)
    return {"model": model.name, "rows": judged.rows, "questions": asked}


def write_plain(model: Path, source: Path, out: Path, dtype: DType = DType.F32) -> None:
    """Write an expert folder with a GGUF file's or folder's weights dequantised to float32, or rounded to `dtype`."""
    if model.suffix == ".gguf":
        job = plan_import(model)
        shapes = {name: found.shape for name, found in job.sources.items()}
        config: Mapping[str, Any] = job.config

        def values(name: str) -> F32:
            return job.sources[name].values(0, shapes[name][0]).reshape(shapes[name])
    else:
        opened = open_model(model)
        weights = {weight.name: weight for weight in opened.graph.weights}
        config = opened.checkpoint.config

        def values(name: str) -> F32:
            return weight_rows_f32(opened, weights[name], slice(None))

        shapes = {name: tuple(int(str(dim)) for dim in weight.shape) for name, weight in weights.items()}

    def write(file: BinaryIO, entry: Entry) -> None:
        file.write(np.ascontiguousarray(from_f32(values(entry.name), dtype)).data)

    declared = "float32" if dtype is DType.F32 else "bfloat16"
    size_bytes = sum(dtype.tensor_bytes(shape) for shape in shapes.values())
    with new_folder(out, f"the model in {declared}", size_bytes) as begun:
        copy_other_files(source, begun)
        write_config(begun, {key: value for key, value in config.items() if key != KEY} | {"dtype": declared})
        entries = [Entry(name, dtype, shape) for name, shape in shapes.items()]
        write_tensors(begun / SINGLE, entries, {"format": "pt"}, write)


def windows_of(folder: Path, text: Path, tokens: int, window: int) -> list[list[int]]:
    """The text's first tokens in windows, each preceded by the tokenizer's begin tokens, if any. Raises UsageError."""
    tokenizer = Tokenizer.from_folder(folder)
    before = list(tokenizer.encode(""))
    ids = list(tokenizer.encode(text.read_text(encoding="utf-8")))[len(before) : len(before) + tokens]
    each = window - len(before)
    found = [[*before, *ids[at : at + each]] for at in range(0, len(ids), each)]
    if not found or len(found[0]) < 2:
        raise UsageError(str(text), "has less than two tokens", "give a longer text")
    return [ids for ids in found if len(ids) > 1]


@contextmanager
def _ours(folder: Path, activations: str, window: int) -> Iterator[Logits]:
    with on_cpu(with_activations(open_model(folder), activations), "device", None, window) as loaded:
        yield lambda ids: loaded.logits(ids, _PIECE)


@cache
def _engine() -> LlamaCpp:
    """One instance for the whole process, since the library keeps a callback into it."""
    return LlamaCpp()


@contextmanager
def _llama_cpp(model: Path, _: Path, window: int) -> Iterator[Logits]:
    if model.suffix != ".gguf":
        raise UsageError("--peer", f"{LLAMA_CPP} reads GGUF files, and {model} is none", "name a GGUF file")
    session = _engine().open(model, Settings(os.cpu_count() or 1, "mmap", "flash"), window)
    try:
        yield lambda ids: session.logits(ids, _PIECE)
    finally:
        session.close()


@contextmanager
def _transformers(_: Path, base: Path, window: int) -> Iterator[Logits]:
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    opened = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()

    def logits(ids: Sequence[int]) -> Iterator[F32]:
        with torch.no_grad():
            yield opened(torch.tensor([list(ids)])).logits[0].numpy()

    yield logits


_PEERS = {LLAMA_CPP: _llama_cpp, TRANSFORMERS: _transformers}


def _asked(experts: Mapping[str, Path], questions: Path) -> dict[str, dict[str, float | int]]:
    """The share of questions that each expert answers right, by summed logprobs and by logprobs per character."""
    asked = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = {}
    for name, folder in experts.items():
        for activations in _activations(folder):
            with Coterie.open(folder, Options(activations=activations)) as coterie:
                right = np.array([_right(coterie, question) for question in asked])
            row = _row(name, activations)
            found[row] = {"accuracy": right[:, 0].mean(), "a_character": right[:, 1].mean(), "questions": len(asked)}
            print(f"  {row}: {right[:, 0].mean():.1%} of {len(asked)} questions", flush=True)
    return found


def _right(coterie: Coterie, question: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the right choice is the likeliest, by summed logprobs and by logprobs per character."""
    (text,) = coterie.texts.values()
    tokenizer = text.tokenizer
    if tokenizer is None:
        raise UsageError("--questions", "the model has no tokenizer", "name a model that has one")
    begun = tuple(tokenizer.encode(question["prompt"]))
    scored = ChoiceParams(top_logprobs=0, score_prompt=True)
    queries = []
    for choice in question["choices"]:
        whole = question["prompt"] + choice
        ids = tuple(tokenizer.encode(whole))
        queries.append(Query((Message("user", whole),), raw=True, prompt_ids=ids, max_tokens=0, choice=scored))
    sums = []
    for query, answer in zip(queries, coterie.ask_all(queries), strict=True):
        shared = next((i for i, (a, b) in enumerate(zip(begun, query.prompt_ids, strict=False)) if a != b), len(begun))
        sums.append(sum(one.logprob for one in answer.prompt_logprobs[max(1, shared) :]))
    lengths = [len(choice) for choice in question["choices"]]
    return (
        int(np.argmax(sums)) == question["answer"],
        int(np.argmax(np.divide(sums, lengths))) == question["answer"],
    )


def _activations(folder: Path) -> tuple[str, ...]:
    """The types to which activations can be rounded for this expert's packed or bfloat16 weights."""
    model = open_model(folder)
    return (INT16, *(to for to in (INT8, BF16) if with_activations(model, to).key != model.key))


def _row(name: str, activations: str) -> str:
    return name if activations == INT16 else f"{name}, {activations} activations"


def tables(found: Mapping[str, Any]) -> str:
    """One model's tables as Markdown."""
    base = found["rows"]["float32"]["perplexity"]
    rows = [
        (
            name,
            f"{row['perplexity']:.3f} ({row['perplexity'] / base:.4f} x)",
            *(f"{row['kl_divergence']:.6f}", f"{row['top1_agreement']:.2%}", f"{row['largest_difference']:.2%}"),
        )
        for name, row in found["rows"].items()
    ]
    head = f"| {found['model']} | perplexity | KL divergence | same next token | largest difference |"
    asked = [
        (name, f"{row['accuracy']:.1%}", f"{row['a_character']:.1%}", str(row["questions"]))
        for name, row in found["questions"].items()
    ]
    more = markdown.table("| questions | right | right, a character | of |", asked)
    return "\n\n".join(part for part in (markdown.table(head, rows), more) if part)


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, compare, print tables, then one line of JSON for each model."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.released", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="a GGUF file, or an unquantised folder")
    parser.add_argument("--text", type=Path, required=True, help="a text whose tokens are judged")
    parser.add_argument("--tokens", type=int, default=4096, help="how many of its tokens")
    parser.add_argument("--window", type=int, default=512, help="tokens that are read in one piece")
    parser.add_argument(
        "--packing", action="append", choices=[*PACKINGS, HALVES], help="pack the base so; may be repeated"
    )
    parser.add_argument("--peer", action="append", choices=list(_PEERS), help="compare with it; may be repeated")
    parser.add_argument("--questions", type=Path, help="questions with choices, a JSON object a line")
    parser.add_argument("--folder", type=Path, help="where to write experts, which are kept and found again")
    options = parser.parse_args(args)
    results = []
    with TemporaryDirectory(prefix="coterie-released-") as temporary:
        for model in options.models:
            folder = (options.folder or Path(temporary)) / model.stem
            folder.mkdir(parents=True, exist_ok=True)
            results.append(compare(model, folder, options))
    for found in results:
        print(f"\n{tables(found)}")
    for found in results:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
