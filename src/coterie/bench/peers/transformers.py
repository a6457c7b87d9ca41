"""Hugging Face transformers on the CPU: greedy decoding with a key/value cache.

Knows nothing about what is measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coterie.bench.peers.peer import Settings, missing_extra

_PRECISIONS = {"bf16": ("bfloat16", "float32")}


class Transformers:
    """The engine. Raises UsageError when its packages are not installed."""

    name = "transformers"

    def __init__(self) -> None:
        try:
            self._torch = importlib.import_module("torch")
            self._transformers = importlib.import_module("transformers")
        except ImportError:
            raise missing_extra(self.name, "transformers") from None
        self._transformers.logging.set_verbosity_error()
        self._transformers.logging.disable_progress_bar()

    def precisions(self, weights: str) -> tuple[str, ...]:
        """Types of torch; it has no whole-number formats of its own on a CPU."""
        return _PRECISIONS.get(weights, ())

    def candidates(self, cpus: int) -> tuple[Settings, ...]:
        """All threads and one, with torch's fused attention and without."""
        counts = sorted({1, cpus}, reverse=True)
        return tuple(Settings(n, "safetensors", how) for n in counts for how in ("sdpa", "eager"))

    def prepare(self, folder: Path, out: Path, precision: str) -> Path:
        """The folder itself is what it opens; `out` holds a link that is named after the precision."""
        out.mkdir(parents=True, exist_ok=True)
        link = out / precision
        link.symlink_to(folder.resolve(), target_is_directory=True)
        return link

    def files(self, prepared: Path) -> tuple[Path, ...]:
        """The weights."""
        return tuple(prepared.glob("*.safetensors"))

    def open(self, prepared: Path, settings: Settings, max_tokens: int) -> TransformersSession:
        """Load the folder in the type that the link is named after."""
        self._torch.set_num_threads(settings.threads)
        dtype = getattr(self._torch, prepared.name)
        load = self._transformers.AutoModelForCausalLM.from_pretrained
        model = load(prepared, dtype=dtype, attn_implementation=settings.attention, local_files_only=True)
        return TransformersSession(self._torch, model.eval(), settings.threads)


class TransformersSession:
    """A model and the cache of one sequence."""

    def __init__(self, torch: Any, model: Any, threads: int) -> None:
        self._torch, self._model, self._threads = torch, model, threads
        self._cache: Any = None
        self._last = 0

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """One forward pass over the prompt; only the last token's logits are made."""
        self._cache = None
        return self._step(prompt_ids)

    def decode(self, count: int) -> list[int]:
        """One forward pass a token."""
        return [self._step((self._last,)) for _ in range(count)]

    def rewind(self, tokens: int) -> None:
        """Cut the cache."""
        surplus = self._cache.get_seq_length() - tokens
        if surplus > 0:
            self._cache.crop(-surplus)

    def close(self) -> None:
        """Drop the model."""
        self._model = self._cache = None

    def _step(self, ids: Sequence[int]) -> int:
        self._torch.set_num_threads(self._threads)  # a setting of the process, which other sessions change
        with self._torch.inference_mode():
            out = self._model(
                self._torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        self._cache = out.past_key_values
        self._last = int(out.logits[0, -1].argmax())
        return self._last
