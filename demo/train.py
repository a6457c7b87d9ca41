"""Trains demo experts, one process and one thread each, and exports them as Hugging Face folders.

    python demo/train.py base                    what all others start from: every task, long
    python demo/train.py roman-numerals          one expert
    python demo/train.py --all                   every expert that has no training.json yet
    python demo/train.py --single                the single model, as many steps as all experts together

Stopped and started again, it goes on from its last checkpoint. Knows nothing about serving.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

import export
from data import BASE, GENERAL, IGNORE, steps, task_names
from generate import complete, last_line
from model import Shape, TinyLlama, linear
from questions import PRESET, held_out
from tasks import TASKS

SHAPE = Shape()
BASE_STEPS, TUNE_STEPS = 20_400, 200
WORK = Path(__file__).resolve().parent / ".work"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides what a run computes; written beside the weights."""

    steps: int
    batch: int = 32
    micro_batches: int = 2
    muon_lr: float = 0.02
    muon_iterations: int = 3
    adam_lr: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_share: float = 0.6
    seed: int = 0

    def rate(self, step: int) -> float:
        """The share of the peak learning rate at a step: up, level, then straight down to zero."""
        rise = (step + 1) / self.warmup_steps
        fall = (self.steps - step) / (self.steps * self.decay_share)
        return min(1.0, rise, fall)


def settings_for(name: str) -> Settings:
    """The base is trained long; experts, and for all their steps together the single model, go on from it gently."""
    if name == BASE:
        return Settings(steps=BASE_STEPS)
    count = TUNE_STEPS * (len(TASKS) if name == GENERAL else 1)
    return Settings(steps=count, muon_lr=0.003, adam_lr=5e-4, warmup_steps=20, decay_share=1.0, seed=1)


def optimizers(model: TinyLlama, settings: Settings) -> list[Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.layers.parameters() if p.ndim != 2] + [model.embed_tokens, model.norm]
    return [
        Muon(matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay, ns_steps=settings.muon_iterations),
        AdamW(others, lr=settings.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@dataclass(slots=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    core_seconds: float = 0.0


def _save(path: Path, model: TinyLlama, optims: list[Optimizer], settings: Settings, progress: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / ".gitignore").write_text("*\n")
    state = {
        "model": model.state_dict(),
        "optims": [o.state_dict() for o in optims],
        "settings": asdict(settings),
        "progress": asdict(progress),
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _resume(path: Path, model: TinyLlama, optims: list[Optimizer], settings: Settings) -> Progress | None:
    """The progress of a checkpoint of the same settings, or None."""
    if not path.exists():
        return None
    state = torch.load(path, weights_only=True)
    if state["settings"] != asdict(settings):
        return None
    model.load_state_dict(state["model"])
    for optim, saved in zip(optims, state["optims"], strict=True):
        optim.load_state_dict(saved)
    return Progress(**state["progress"])


def _from_base(model: TinyLlama, work: Path) -> Progress:
    """Loads the base's weights, without its optimizers' memory."""
    path = work / f"{BASE}.pt"
    if not path.exists():
        raise SystemExit(f"[train] {path} is missing; run `python demo/train.py {BASE}` first")
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    return Progress()


def _loss(hidden: Callable[[Tensor, Tensor], Tensor], model: TinyLlama, inputs: Tensor, targets: Tensor) -> Tensor:
    """Summed cross entropy over the answer tokens; questions are read, not learned."""
    flat = targets.flatten()
    rows = (flat != IGNORE).nonzero().squeeze(1)
    return F.cross_entropy(linear(hidden(inputs, rows), model.embed_tokens), flat[rows], reduction="sum")


def train(
    expert: str, settings: Settings, work: Path, compiled: bool = True, save_every: int = 200, stop: int | None = None
) -> tuple[TinyLlama, Progress]:
    """Trains to the end (or to step `stop`), resuming from the checkpoint in `work` if its settings are the same."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    model = TinyLlama(SHAPE)
    optims = optimizers(model, settings)
    peaks = [group["lr"] for optim in optims for group in optim.param_groups]
    path = work / f"{expert}.pt"
    progress = _resume(path, model, optims, settings)
    if progress is None:
        progress = Progress() if expert == BASE else _from_base(model, work)
    hidden: Callable[[Tensor, Tensor], Tensor] = torch.compile(model.hidden, dynamic=True) if compiled else model.hidden
    last = settings.steps if stop is None else stop
    wall, core = time.monotonic(), time.process_time()
    for batches in steps(expert, settings.seed, progress.step, settings.batch, settings.micro_batches):
        if progress.step >= last:
            break
        tokens, loss = sum(int((targets != IGNORE).sum()) for _, targets in batches), 0.0
        for inputs, targets in batches:
            part = _loss(hidden, model, inputs, targets) / tokens
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        for optim, peak in zip(optims, peaks, strict=True):
            optim.param_groups[0]["lr"] = peak * settings.rate(progress.step)
            optim.step()
            optim.zero_grad()
        now, spent = time.monotonic(), time.process_time()
        kept = 0.98 if progress.step else 0.0
        progress = Progress(
            progress.step + 1,
            kept * progress.loss + (1 - kept) * loss,
            progress.seconds + now - wall,
            progress.core_seconds + spent - core,
        )
        wall, core = now, spent
        if progress.step % save_every == 0 or progress.step == last:
            _save(path, model, optims, settings, progress)
            print(f"{expert} step {progress.step} loss {progress.loss:.4f} {progress.seconds:.0f} s", flush=True)
    return model, progress


def score(model: TinyLlama, task_name: str) -> dict[str, Any]:
    """Exact matches of the last line on the task's held-out questions."""
    examples = held_out(TASKS[task_name])
    outputs = complete(model, [example.question for example in examples])
    right = [last_line(text) == example.answer for text, example in zip(outputs, examples, strict=True)]
    seen = [ok for ok, example in zip(right, examples, strict=True) if example.seen_phrasing]
    unseen = [ok for ok, example in zip(right, examples, strict=True) if not example.seen_phrasing]
    return {
        "questions": len(right),
        "exact_match": round(sum(right) / len(right), 4),
        "exact_match_seen_phrasing": round(sum(seen) / len(seen), 4),
        "exact_match_unseen_phrasing": round(sum(unseen) / len(unseen), 4),
    }


def finish(expert: str, model: TinyLlama, settings: Settings, progress: Progress, out: Path) -> dict[str, Any]:
    """Exports the model, scores what was exported, and writes training.json."""
    folder = out / expert
    export.write(model, folder)
    exported = export.read(folder, model.shape)
    scores = {name: score(exported, name) for name in task_names(expert)}
    report: dict[str, Any] = {
        "expert": expert,
        "parameters": sum(p.numel() for p in model.parameters()),
        "base_steps": BASE_STEPS,
        "settings": asdict(settings),
        "examples": settings.steps * settings.batch,
        "seconds": round(progress.seconds, 1),
        "core_seconds": round(progress.core_seconds, 1),
        "final_loss": round(progress.loss, 6),
        "held_out": scores,
    }
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experts", nargs="*", metavar="EXPERT", help=f"of: {', '.join([*TASKS, GENERAL, BASE])}")
    parser.add_argument("--all", action="store_true", help="every expert without a training.json")
    parser.add_argument("--single", action="store_true", help=f"the single model, {GENERAL!r}")
    parser.add_argument("--out", type=Path, default=PRESET / "experts", help="folder of the exported experts")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the checkpoints")
    parser.add_argument("--no-compile", action="store_true", help="plain PyTorch, where no C++ compiler is at hand")
    args = parser.parse_args()
    names: list[str] = list(args.experts)
    if args.all:
        names += [name for name in TASKS if not (args.out / name / "training.json").exists()]
    if args.single:
        names.append(GENERAL)
    for name in names:
        if name not in {*TASKS, GENERAL, BASE}:
            parser.error(f"no expert {name!r}; choose of {', '.join([*TASKS, GENERAL, BASE])}")
        settings = settings_for(name)
        model, progress = train(name, settings, args.work, not args.no_compile)
        if name != BASE:
            print(json.dumps(finish(name, model, settings, progress, args.out)["held_out"]), flush=True)


if __name__ == "__main__":
    main()
