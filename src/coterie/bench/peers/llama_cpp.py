"""llama.cpp, through the C interface that the package llama-cpp-python carries.

Knows nothing about what is measured. Everything that a step needs is made at open; decode does no Python per layer.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.bench.peers.gguf_file import write_gguf
from coterie.bench.peers.peer import Settings, missing_extra
from coterie.core.errors import DeviceError
from coterie.models.model import open_model

_FILE = "model.gguf"
_PRECISIONS = {"bf16": ("BF16", "F16", "F32"), "int8": ("Q8_0",), "int4": ("Q4_0",), "int4z": ("Q4_1",)}
# How a file is read, and whether its blocks are then laid out anew for the CPU's widest products (a second copy).
_LOADS = {
    "mmap": ("LLAMA_LOAD_MODE_MMAP", True),
    "read": ("LLAMA_LOAD_MODE_NONE", True),
    "direct": ("LLAMA_LOAD_MODE_DIRECT_IO", True),
    "mmap as stored": ("LLAMA_LOAD_MODE_MMAP", False),
}
_ATTENTION = {"flash": "LLAMA_FLASH_ATTN_TYPE_ENABLED", "plain": "LLAMA_FLASH_ATTN_TYPE_DISABLED"}


class LlamaCpp:
    """The engine. Raises UsageError when its package is not installed."""

    name = "llama.cpp"
    converts = True

    def __init__(self) -> None:
        try:
            self._api = importlib.import_module("llama_cpp")
        except ImportError:
            raise missing_extra(self.name, "llama-cpp-python") from None
        self._silence = self._api.llama_log_callback(lambda *_: None)  # kept: the library calls it later
        self._api.llama_log_set(self._silence, ctypes.c_void_p(0))
        self._api.llama_backend_init()

    def precisions(self, weights: str) -> tuple[str, ...]:
        """GGUF types that hold such weights."""
        return _PRECISIONS[weights]

    def candidates(self, cpus: int) -> tuple[Settings, ...]:
        """All threads and one, memory-mapped or read, repacked or not, with and without flash attention."""
        threads = sorted({1, cpus}, reverse=True)
        return tuple(Settings(n, load, attention) for n in threads for load in _LOADS for attention in _ATTENTION)

    def prepare(self, folder: Path, out: Path, precision: str) -> Path:
        """Write the GGUF file. Raises UnsupportedError for a model that has no such form."""
        out.mkdir(parents=True, exist_ok=True)
        write_gguf(open_model(folder), out / _FILE, precision)
        return out / _FILE

    def files(self, prepared: Path) -> tuple[Path, ...]:
        """The GGUF file."""
        return (prepared,)

    def open(self, prepared: Path, settings: Settings, max_tokens: int) -> LlamaSession:
        """Load the file. Raises DeviceError when llama.cpp cannot."""
        return LlamaSession(self._api, prepared, settings, max_tokens)

    def reserve(self, prepared: Iterable[Path], settings: Settings) -> None:
        """It keeps nothing."""

    def forget(self) -> None:
        """It keeps nothing."""


class LlamaFile(LlamaCpp):
    """llama.cpp on a GGUF file of the user's: nothing is converted, whatever the weights are called."""

    converts = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def precisions(self, weights: str) -> tuple[str, ...]:
        """The file's name, which says it for most."""
        return (self._file.name,)

    def prepare(self, folder: Path, out: Path, precision: str) -> Path:
        """The file as it is."""
        return self._file


class LlamaSession:
    """A model and its context for one sequence."""

    def __init__(self, api: Any, path: Path, settings: Settings, max_tokens: int) -> None:
        self._api, self._context = api, None
        params = api.llama_model_default_params()
        mode, repack = _LOADS[settings.load]
        params.load_mode, params.use_extra_bufts = getattr(api, mode), repack
        self._model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise DeviceError("llama.cpp", f"{path} could not be loaded", "compare without this peer")
        options = api.llama_context_default_params()
        options.n_ctx = max_tokens
        options.n_batch = max(max_tokens, 32)  # a prompt in one call, which llama.cpp cuts by its own n_ubatch
        options.n_threads = options.n_threads_batch = settings.threads
        options.flash_attn_type = getattr(api, _ATTENTION[settings.attention])
        options.no_perf = True
        self._context = api.llama_init_from_model(self._model, options)
        if not self._context:
            self.close()
            raise DeviceError("llama.cpp", f"no context of {max_tokens} tokens", "give fewer tokens")
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._last = 0

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """Run the prompt in one batch after emptying the cache."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        self._last = self._step(prompt_ids)
        return self._last

    def decode(self, count: int) -> list[int]:
        """One call a token."""
        drawn = []
        for _ in range(count):
            self._last = self._step((self._last,))
            drawn.append(self._last)
        return drawn

    def rewind(self, tokens: int) -> None:
        """Remove the positions from `tokens` on."""
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), 0, tokens, -1)

    def logits(self, ids: Sequence[int], piece: int = 128) -> Iterator[npt.NDArray[np.float32]]:
        """Logits behind each token of one sequence [tokens, V], `piece` tokens at a time, after emptying the cache."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        batch = self._api.llama_batch_init(piece, 0, 1)
        try:
            for first in range(0, len(ids), piece):
                part = ids[first : first + piece]
                batch.n_tokens = len(part)
                for i, token in enumerate(part):
                    batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + i, 1
                    batch.seq_id[i][0], batch.logits[i] = 0, 1
                self._run(batch)
                found = self._api.llama_get_logits(self._context)
                yield np.ctypeslib.as_array(found, (len(part), self._vocab_size)).copy()
        finally:
            self._api.llama_batch_free(batch)

    def synchronize(self) -> None:
        """A call returns when it is done."""

    def close(self) -> None:
        """Free context and model."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    def _step(self, ids: Sequence[int]) -> int:
        array = (ctypes.c_int32 * len(ids))(*ids)
        self._run(self._api.llama_batch_get_one(array, len(ids)))
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self._vocab_size,))))

    def _run(self, batch: Any) -> None:
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            raise DeviceError("llama.cpp", f"llama_decode answered {status}", "give fewer tokens")
