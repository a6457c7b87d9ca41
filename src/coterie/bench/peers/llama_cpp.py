"""llama.cpp, through the C API in the package llama-cpp-python.

Knows nothing about what is measured, nor how an open model runs (llama_session.py).
"""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path

from coterie.bench.peers.gguf_file import write_gguf
from coterie.bench.peers.llama_session import ATTENTION, LOADS, LlamaBatch, LlamaSession
from coterie.bench.peers.peer import KeepsNothing, Settings, missing_extra, thread_counts
from coterie.models.model import open_model

_FILE = "model.gguf"
_PRECISIONS = {"bf16": ("BF16", "F16", "F32"), "int8": ("Q8_0",), "int4": ("Q4_0",), "int4z": ("Q4_1",)}


class LlamaCpp(KeepsNothing):
    """The engine. Raises UsageError if its package is not installed."""

    name = "llama.cpp"
    converts = True

    def __init__(self) -> None:
        try:
            self._api = importlib.import_module("llama_cpp")
        except ImportError:
            raise missing_extra(self.name, "llama-cpp-python") from None
        self._silence = self._api.llama_log_callback(lambda *_: None)  # keep a reference: the library calls it later
        self._api.llama_log_set(self._silence, ctypes.c_void_p(0))
        self._api.llama_backend_init()

    def precisions(self, weights: str) -> tuple[str, ...]:
        """The GGUF types for such weights."""
        return _PRECISIONS.get(weights, ())  # no int6: the gguf package cannot write Q6_K

    def candidates(self, threads: int) -> tuple[Settings, ...]:
        """All threads and one, memory-mapped or read, repacked or not, with and without flash attention."""
        counts = thread_counts(threads)
        return tuple(Settings(n, load, attention) for n in counts for load in LOADS for attention in ATTENTION)

    def prepare(self, folder: Path, out: Path, precision: str) -> Path:
        """Write the GGUF file. Raises UnsupportedError for a model that cannot be converted."""
        out.mkdir(parents=True, exist_ok=True)
        write_gguf(open_model(folder), out / _FILE, precision)
        return out / _FILE

    def files(self, prepared: Path) -> tuple[Path, ...]:
        """The GGUF file."""
        return (prepared,)

    def open(self, prepared: Path, settings: Settings, max_tokens: int) -> LlamaSession:
        """Load the file. Raises DeviceError if llama.cpp cannot."""
        return LlamaSession(self._api, prepared, settings, max_tokens)

    def open_batch(self, prepared: Path, settings: Settings, max_tokens: int, slots: int, shared: bool) -> LlamaBatch:
        """Load the file for `slots` sequences of `max_tokens` each. Raises DeviceError if llama.cpp cannot."""
        return LlamaBatch(self._api, prepared, settings, max_tokens, slots, shared)


class LlamaFile(LlamaCpp):
    """llama.cpp on the user's GGUF file, which is used as it is, whatever `weights` says."""

    converts = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def precisions(self, weights: str) -> tuple[str, ...]:
        """The file's name, which mostly contains its type."""
        return (self._file.name,)

    def prepare(self, folder: Path, out: Path, precision: str) -> Path:
        """The user's file, unchanged."""
        return self._file
