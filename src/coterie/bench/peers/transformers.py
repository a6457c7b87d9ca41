"""Hugging Face transformers on the CPU or a GPU: greedy decoding with a KV cache, eager or compiled.

    load  safetensors   from the file, through the page cache
          host          a module loaded earlier and parked in host memory, copied to the device

Knows nothing about what is measured.
"""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from coterie.bench.peers.host_module import HostModule, HostRoom, room_bytes
from coterie.bench.peers.peer import Session, Settings, missing_extra, thread_counts
from coterie.devices.cuda.driver import Driver
from coterie.devices.cuda.gpu import open_driver

FILE, HOST = "safetensors", "host"
_PRECISIONS = {"bf16": ("bfloat16", "float32")}
_GPU_PRECISIONS = {"bf16": ("bfloat16",)}
_FLASH = "flash_attention_2"

CACHE_MULTIPLE = 64  # tokens; rows of a static cache of odd length cannot be read in 16-byte loads
ROOM_BESIDE_FILE_BYTES = 2**20  # host memory for buffers of a module that are in no file: a few tables
BACKEND = "inductor"  # of torch.compile: on a GPU, Triton kernels in CUDA graphs

Phase = Literal["prefill", "decode"]


class Transformers:
    """The engine on the CPU, or on torch's `device`. Raises UsageError if its packages are not installed.

    `compiled`: None runs eagerly, with a growing cache; otherwise that phase is compiled, with a static cache.
    """

    converts = False

    def __init__(self, device: str | None = None, compiled: Phase | None = None) -> None:
        try:
            self._torch = importlib.import_module("torch")
            self._transformers = importlib.import_module("transformers")
        except ImportError:
            raise missing_extra("transformers", "transformers") from None
        self._transformers.logging.set_verbosity_error()
        self._transformers.logging.disable_progress_bar()
        self._on_cpu, self._device, self._compiled = device is None, device or "cpu", compiled
        self._kept: dict[tuple[Path, str], HostModule] = {}
        self._rooms: list[HostRoom] = []
        self._compiled_open = 0

    @property
    def name(self) -> str:
        """The name shown in reports."""
        return "transformers compiled" if self._compiled is not None else "transformers"

    @property
    def compiles(self) -> bool:
        """Whether the first pass includes compiling the whole model."""
        return self._compiled is not None

    @property
    def graph_skips(self) -> int:
        """How often this process's compiler has given up on a CUDA graph."""
        counters = importlib.import_module("torch._dynamo.utils").counters
        return int(counters["inductor"]["cudagraph_skips"])

    def precisions(self, weights: str) -> tuple[str, ...]:
        """Torch dtypes; it has no integer formats of its own."""
        return (_PRECISIONS if self._on_cpu else _GPU_PRECISIONS).get(weights, ())

    def candidates(self, threads: int) -> tuple[Settings, ...]:
        """On a CPU all threads and one; on a GPU from the file and from host memory; each with every attention."""
        ways: tuple[str, ...] = ("sdpa", "eager")
        if self._on_cpu:
            return tuple(Settings(n, FILE, how) for n in thread_counts(threads) for how in ways)
        if self._compiled is not None:
            return tuple(Settings(threads, FILE, how) for how in ways)
        ways = (*ways, _FLASH) if find_spec("flash_attn") is not None else ways
        return tuple(Settings(threads, load, how) for load in (FILE, HOST) for how in ways)

    def prepare(self, folder: Path, out: Path, precision: str) -> Path:
        """A link to the folder, which is opened as it is, named after the precision."""
        out.mkdir(parents=True, exist_ok=True)
        link = out / precision
        link.symlink_to(folder.resolve(), target_is_directory=True)
        return link

    def files(self, prepared: Path) -> tuple[Path, ...]:
        """The weight files."""
        return tuple(prepared.glob("*.safetensors"))

    def open(self, prepared: Path, settings: Settings, max_tokens: int) -> Session:
        """Load the folder in the dtype that the link is named after, or copy a module parked in host memory."""
        where = Where(self._torch, settings.threads, self._device)
        where.set_threads()
        if settings.load == HOST:
            key = (prepared, settings.attention)
            if key not in self._kept:
                module = self._load(prepared, settings)
                self._kept[key] = HostModule(self._torch, module, self._device, self._room(room_bytes(module)))
            self._kept[key].move()
            return TransformersSession(where, self._kept[key].module, self._kept[key].leave)
        model = self._load(prepared, settings).to(self._device)
        if self._compiled is None:
            return TransformersSession(where, model)
        cache = self._fixed_cache(model, max_tokens)
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        forward = self._torch.compile(model, mode="reduce-overhead", dynamic=False, backend=BACKEND)
        forwards = {"prefill": model, "decode": model, self._compiled: forward}
        self._compiled_open += 1
        return CompiledSession(where, forwards, cache, self._closed)

    def reserve(self, prepared: Iterable[Path], settings: Settings) -> None:
        """Pin the host memory that these will be parked in."""
        if settings.load == HOST:
            for path in prepared:
                size = sum(file.stat().st_size for file in self.files(path))
                self._rooms.append(HostRoom(size + ROOM_BESIDE_FILE_BYTES, self._driver()))

    @property
    def pins(self) -> bool:
        """Whether all modules in host memory are pinned."""
        return all(kept.room.is_pinned for kept in self._kept.values())

    def _room(self, size_bytes: int) -> HostRoom:
        """The smallest reserved block that is large enough, or a new one."""
        found = min(
            (r for r in self._rooms if r.bytes.nbytes >= size_bytes), key=lambda r: r.bytes.nbytes, default=None
        )
        if found is None:
            return HostRoom(size_bytes, self._driver())
        self._rooms = [room for room in self._rooms if room is not found]
        return found

    def _driver(self) -> Driver | None:
        """The driver of the GPU that torch computes on; None on a CPU."""
        return open_driver(self._torch.device(self._device).index or 0) if self._device.startswith("cuda") else None

    def forget(self) -> None:
        """Free the modules in host memory, and what torch keeps of closed models on the GPU."""
        self._kept.clear()
        self._rooms.clear()
        gc.collect()  # modules and their compiled code are in reference cycles
        if self._device.startswith("cuda"):
            self._torch.cuda.empty_cache()

    def _fixed_cache(self, model: Any, max_tokens: int) -> Any:
        """A static cache, allocated before tracing: CUDA graphs need fixed addresses, which a traced pass lacks."""
        room, config = -(-max_tokens // CACHE_MULTIPLE) * CACHE_MULTIPLE, model.config
        cache = self._transformers.StaticCache(config=config, max_cache_len=room)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        sizes = {"batch_size": 1, "num_heads": config.num_key_value_heads, "head_dim": width}
        cache.early_initialization(**sizes, dtype=model.dtype, device=self._device)
        return cache

    def _closed(self) -> None:
        """Drop compiled code with the last session that uses any: torch can only drop all of it at once."""
        self._compiled_open -= 1
        if self._compiled_open == 0:
            self._torch._dynamo.reset()

    def _load(self, prepared: Path, settings: Settings) -> Any:
        load = self._transformers.AutoModelForCausalLM.from_pretrained
        dtype = getattr(self._torch, prepared.name)
        return load(prepared, dtype=dtype, attn_implementation=settings.attention, local_files_only=True).eval()


@dataclass(frozen=True, slots=True)
class Where:
    """Torch, its number of CPU threads, and the device that a session computes on."""

    torch: Any
    threads: int
    device: str

    def set_threads(self) -> None:
        """Set torch's number of threads, which is global: other sessions change it."""
        self.torch.set_num_threads(self.threads)

    def tokens(self, ids: Sequence[int]) -> Any:
        """Ids [1, T] on the device."""
        return self.torch.tensor([list(ids)], device=self.device)

    def drawn(self, logits: Any) -> Any:
        """The greedy token after the last one, [1, 1], on the device."""
        return logits[:, -1].argmax(-1, keepdim=True)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device.startswith("cuda"):
            self.torch.cuda.synchronize(self.device)


class TransformersSession:
    """A model and the KV cache of one sequence; sampled tokens stay on the device until all of them are read.

    `left` is called on close, to park the model in host memory again.
    """

    def __init__(self, where: Where, model: Any, left: Callable[[], None] = lambda: None) -> None:
        self._where, self._model, self._left = where, model, left
        self._cache: Any = None
        self._last: Any = None

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """One forward pass over the prompt; only the last token's logits are computed."""
        self._begin()
        return int(self._step("prefill", self._where.tokens(prompt_ids)))

    def decode(self, count: int) -> list[int]:
        """One forward pass per token."""
        drawn = [self._step("decode", self._last) for _ in range(count)]
        return [int(token) for token in self._where.torch.cat(drawn).flatten().tolist()]

    def rewind(self, tokens: int) -> None:
        """Truncate the cache."""
        surplus = self._cache.get_seq_length() - tokens
        if surplus > 0:
            self._cache.crop(-surplus)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self._where.synchronize()

    def close(self) -> None:
        """Drop the model."""
        self._model = self._cache = self._last = None
        self._left()

    def _begin(self) -> None:
        """Start with an empty cache."""
        self._cache = None

    def _step(self, phase: Phase, ids: Any) -> Any:
        self._where.set_threads()
        with self._where.torch.inference_mode():
            out = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache, self._last = out.past_key_values, self._where.drawn(out.logits)
        return self._last


class CompiledSession(TransformersSession):
    """A session with a static cache and one phase compiled, as `generate` does for decoding."""

    def __init__(self, where: Where, forwards: Mapping[str, Any], cache: Any, left: Callable[[], None]) -> None:
        super().__init__(where, None, left)
        self._forwards, self._cache = dict(forwards), cache

    def rewind(self, tokens: int) -> None:
        """Set the position of the next token; later positions are masked."""
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(tokens)

    def close(self) -> None:
        """Drop the model."""
        self._forwards.clear()
        super().close()

    def _begin(self) -> None:
        self.rewind(0)

    def _step(self, phase: Phase, ids: Any) -> Any:
        torch = self._where.torch
        self._where.set_threads()
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():  # tensors created in inference mode cannot be changed in place outside of it
            out = self._forwards[phase](ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._last = self._where.drawn(out.logits)
        return self._last
