"""llama.cpp, through the C interface that the package llama-cpp-python carries.

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
        return _PRECISIONS.get(weights, ())  # its package does not write Q6_K

    def candidates(self, threads: int) -> tuple[Settings, ...]:
        """All threads and one, memory-mapped or read, repacked or not, with and without flash attention."""
        counts = thread_counts(threads)
        return tuple(Settings(n, load, attention) for n in counts for load in LOADS for attention in ATTENTION)

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

    def open_batch(self, prepared: Path, settings: Settings, max_tokens: int, slots: int, shared: bool) -> LlamaBatch:
        """Load the file for several sequences of so many tokens each. Raises DeviceError when llama.cpp cannot."""
        return LlamaBatch(self._api, prepared, settings, max_tokens, slots, shared)


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
