"""OpenVINO on the CPU: its runtime on the graph that OpenVINO GenAI makes of a GGUF file, weights quantised by NNCF.

    prepare  checkpoint -> GGUF in F16 -> OpenVINO GenAI's own reader -> graph -> NNCF -> openvino_model.xml and .bin
    load     model      compiled at each open
             compiled   loaded from the compiled model that the first open cached

Knows nothing about what is measured. OpenVINO GenAI's pipelines take the same CPU time per token and up to 7 % less per
prompt, but cannot rewind to an earlier context.
"""

from __future__ import annotations

import importlib
import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from coterie.bench.peers.gguf_file import write_gguf
from coterie.bench.peers.peer import KeepsNothing, Settings, TokenByToken, missing_extra, thread_counts
from coterie.core.errors import DeviceError
from coterie.models.model import open_model

_FILE, _GRAPH, _KEPT = "model.gguf", "openvino_model.xml", "compiled"
_PRECISIONS = {
    "bf16": ("bfloat16", "float32"),
    "int8": ("int8",),
    "int4": ("int4, groups of 32", "int4, groups of 128"),
    "int4z": ("int4z, groups of 32", "int4z, groups of 128"),
}
_MODES = {"int8": "INT8_SYM", "int4": "INT4_SYM", "int4z": "INT4_ASYM"}  # the embedding and the head: always 8 bits
MODEL, COMPILED = "model", "compiled"
_CACHES = {"cache of float32": "f32", "cache of 8 bits": "u8"}


class OpenVino(KeepsNothing):
    """The engine. Raises UsageError if one of its packages is not installed.

    Activations are bfloat16 if the CPU has instructions for it, and 8 bits for products with quantised weights: these
    are OpenVINO's defaults, and fastest. Only the precision "float32" computes in float32.
    """

    name = "openvino"
    converts = True

    def __init__(self) -> None:
        self._genai, self._nncf = _package("openvino_genai", "openvino-genai"), _package("nncf", "nncf")
        self._api = importlib.import_module("openvino")  # a dependency of both
        logging.getLogger("nncf").setLevel(logging.ERROR)
        self._core = self._api.Core()

    def precisions(self, weights: str) -> tuple[str, ...]:
        """NNCF's formats; for unquantised weights, the type that products are computed in."""
        return _PRECISIONS.get(weights, ())

    def candidates(self, threads: int) -> tuple[Settings, ...]:
        """All threads and one, compiled before or at each open, with the KV cache quantised or not."""
        counts = thread_counts(threads)
        return tuple(Settings(n, load, cache) for n in counts for load in (MODEL, COMPILED) for cache in _CACHES)

    def prepare(self, folder: Path, out: Path, precision: str) -> Path:
        """Write the graph and its weights. Raises UnsupportedError for a model that cannot be converted."""
        with TemporaryDirectory(prefix="coterie-peer-") as temporary:
            file = Path(temporary) / _FILE
            write_gguf(open_model(folder), file, "F16")
            return self._convert(file, out, precision)

    def files(self, prepared: Path) -> tuple[Path, ...]:
        """The graph, its weights, and cached compiled models."""
        return (prepared, prepared.with_suffix(".bin"), *(prepared.parent / _KEPT).glob("*.blob"))

    def open(self, prepared: Path, settings: Settings, max_tokens: int) -> OpenVinoSession:
        """Compile the graph, or load the cached compiled model. Raises DeviceError if OpenVINO cannot."""
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": settings.threads}
        options["KV_CACHE_PRECISION"] = _CACHES[settings.attention]
        if prepared.parent.name == "float32":
            options["INFERENCE_PRECISION_HINT"] = "f32"
        if settings.load == COMPILED:
            options |= {"CACHE_DIR": str(prepared.parent / _KEPT), "CACHE_MODE": "OPTIMIZE_SPEED"}
        try:
            compiled = self._core.compile_model(prepared, "CPU", options)
        except RuntimeError as error:
            raise DeviceError("openvino", f"{prepared} could not be compiled", "compare without this peer") from error
        return OpenVinoSession(compiled)

    def _convert(self, file: Path, out: Path, precision: str) -> Path:
        """Convert a GGUF file in a temporary folder, where OpenVINO GenAI leaves its own files next to it."""
        # The pipeline saves the graph before it looks for a tokenizer, which our files do not have, and then fails.
        with suppress(RuntimeError, IndexError):
            self._genai.LLMPipeline(file, "CPU", enable_save_ov_model=True)
        saved = file.with_name(_GRAPH)
        if not saved.is_file():
            raise DeviceError("openvino", f"it made no graph of {file.resolve().name}", "compare without this peer")
        graph = last_row_alone(self._core.read_model(saved), importlib.import_module("openvino.opset13"))
        kind, _, groups = precision.partition(", groups of ")
        if kind in _MODES:
            graph = self._rounded(graph, kind, int(groups or -1))
        out.mkdir(parents=True, exist_ok=True)
        self._api.save_model(graph, out / _GRAPH)
        return out / _GRAPH

    def _rounded(self, graph: Any, kind: str, group_size: int) -> Any:
        options: dict[str, Any] = {"mode": getattr(self._nncf.CompressWeightsMode, _MODES[kind])}
        if group_size > 0:
            adjust = self._nncf.GroupSizeFallbackMode.ADJUST  # pick a divisor if the group size does not divide a width
            parameters = self._nncf.AdvancedCompressionParameters(group_size_fallback_mode=adjust)
            options |= {"group_size": group_size, "ratio": 1.0, "advanced_parameters": parameters}
        with redirect_stdout(io.StringIO()):  # hide its progress bar
            return self._nncf.compress_weights(graph, **options)


class OpenVinoFile(OpenVino):
    """OpenVINO on the user's GGUF file, with weights as its own reader stores them."""

    converts = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def precisions(self, weights: str) -> tuple[str, ...]:
        """The file's name, which mostly contains its type."""
        return (self._file.name,)

    def prepare(self, folder: Path, out: Path, precision: str) -> Path:
        """Write the graph of the file. Raises DeviceError for a file that OpenVINO GenAI cannot read."""
        with TemporaryDirectory(prefix="coterie-peer-") as temporary:
            link = Path(temporary) / _FILE
            link.symlink_to(self._file.resolve())
            return self._convert(link, out, precision)


class OpenVinoSession(TokenByToken):
    """A compiled graph, whose state is the KV cache of one sequence."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = {name for value in compiled.inputs for name in value.get_names()}
        self._beam = np.zeros(1, np.int32)
        self._ids: list[int] = []  # the tokens in the KV cache

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """Run the prompt in one call after emptying the state."""
        self._request.reset_state()
        self._ids = []
        self._last = self._step(prompt_ids)
        return self._last

    def rewind(self, tokens: int) -> None:
        """Run the first tokens again: truncating the state would mean writing all of it anew."""
        if tokens < len(self._ids):
            kept = self._ids[:tokens]
            self._request.reset_state()
            self._ids = []
            if kept:
                self._step(kept)

    def close(self) -> None:
        """Drop the compiled graph."""
        self._request = None

    def _step(self, ids: Sequence[int]) -> int:
        first, end = len(self._ids), len(self._ids) + len(ids)
        values = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(first, end, dtype=np.int64)[None],
            "beam_idx": self._beam,
        }
        given = {name: value for name, value in values.items() if name in self._inputs}
        logits = self._request.infer(given, share_inputs=True, share_outputs=True)[0]
        self._ids += ids
        return int(logits[0, -1].argmax())


def last_row_alone(graph: Any, opset: Any) -> Any:
    """The graph with its head applied only to the last token, as in OpenVINO GenAI's pipelines."""
    head = graph.outputs[0].get_node().input_value(0).get_node()
    rows = head.input_value(0)
    ends = (opset.constant(np.array([at], np.int64)) for at in (-1, np.iinfo(np.int64).max, 1, 1))
    head.input(0).replace_source_output(opset.slice(rows, *ends).output(0))
    graph.validate_nodes_and_infer_types()
    return graph


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise missing_extra("openvino", package, "openvino") from None
