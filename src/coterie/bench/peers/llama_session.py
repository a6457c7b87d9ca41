"""Open llama.cpp models: for one sequence, or for several in one batch.

Knows nothing about what is measured. All that a step needs is allocated at open; a step is one call from Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.bench.peers.peer import Settings, TokenByToken
from coterie.core.errors import DeviceError

# How a file is read, and whether its blocks are repacked for the CPU's widest instructions (into a second copy).
LOADS = {
    "mmap": ("LLAMA_LOAD_MODE_MMAP", True),
    "read": ("LLAMA_LOAD_MODE_NONE", True),
    "direct": ("LLAMA_LOAD_MODE_DIRECT_IO", True),
    "mmap as stored": ("LLAMA_LOAD_MODE_MMAP", False),
}
ATTENTION = {"flash": "LLAMA_FLASH_ATTN_TYPE_ENABLED", "plain": "LLAMA_FLASH_ATTN_TYPE_DISABLED"}


class _Opened:
    """A model and its context, with a cache for `slots` sequences of `max_tokens` each."""

    def __init__(
        self, api: Any, path: Path, settings: Settings, max_tokens: int, slots: int = 1, shared: bool = False
    ) -> None:
        self._api, self._context = api, None
        params = api.llama_model_default_params()
        mode, repack = LOADS[settings.load]
        params.load_mode, params.use_extra_bufts = getattr(api, mode), repack
        self._model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise DeviceError("llama.cpp", f"{path} could not be loaded", "compare without this peer")
        options = api.llama_context_default_params()
        options.n_ctx, options.n_seq_max, options.kv_unified = max_tokens * slots, slots, shared
        # Allow all prompts in one call; llama.cpp splits it by its own n_ubatch.
        options.n_batch = max(max_tokens * slots, 32)
        options.n_threads = options.n_threads_batch = settings.threads
        options.flash_attn_type = getattr(api, ATTENTION[settings.attention])
        options.no_perf = True
        self._context = api.llama_init_from_model(self._model, options)
        if not self._context:
            self.close()
            raise DeviceError("llama.cpp", f"no context of {max_tokens * slots} tokens", "give fewer tokens")
        self._memory = api.llama_get_memory(self._context)
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))

    def close(self) -> None:
        """Free context and model."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    def _drawn(self, row: int) -> int:
        """The likeliest token after a row of the last batch."""
        logits = self._api.llama_get_logits_ith(self._context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self._vocab_size,))))

    def _run(self, batch: Any) -> None:
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            raise DeviceError("llama.cpp", f"llama_decode answered {status}", "give fewer tokens")


class LlamaSession(_Opened, TokenByToken):
    """A model and its context for one sequence."""

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """Run the prompt in one batch after emptying the cache."""
        self._api.llama_memory_clear(self._memory, False)
        self._last = self._step(prompt_ids)
        return self._last

    def rewind(self, tokens: int) -> None:
        """Remove the positions from `tokens` on."""
        self._api.llama_memory_seq_rm(self._memory, 0, tokens, -1)

    def logits(self, ids: Sequence[int], piece: int = 128) -> Iterator[npt.NDArray[np.float32]]:
        """Empty the cache; the logits after each token of one sequence [tokens, V], `piece` tokens at a time."""
        self._api.llama_memory_clear(self._memory, True)
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

    def _step(self, ids: Sequence[int]) -> int:
        array = (ctypes.c_int32 * len(ids))(*ids)
        self._run(self._api.llama_batch_get_one(array, len(ids)))
        return self._drawn(-1)


class LlamaBatch(_Opened):
    """A model and its context for several sequences, each in its own slot, all in one call.

    Unless the cache is `shared`, llama.cpp splits a call so that in each part all sequences have equally many tokens.
    """

    def __init__(self, api: Any, path: Path, settings: Settings, max_tokens: int, slots: int, shared: bool) -> None:
        super().__init__(api, path, settings, max_tokens, slots, shared)
        self._batch = api.llama_batch_init(max_tokens * slots, 0, 1)
        self._last, self._filled = [0] * slots, [0] * slots

    def step(self, prompts: Mapping[int, Sequence[int]], going: Sequence[int]) -> dict[int, int]:
        """Run the prompts of new slots and one token of the continuing ones: slot -> the token sampled."""
        ends: dict[int, int] = {}
        count = 0
        for slot, ids in (*prompts.items(), *((slot, (self._last[slot],)) for slot in going)):
            for token in ids:
                self._put(count, token, slot, self._filled[slot])
                self._filled[slot] += 1
                count += 1
            ends[slot] = count - 1
            self._batch.logits[count - 1] = 1
        self._batch.n_tokens = count
        self._run(self._batch)
        for slot, row in ends.items():
            self._last[slot] = self._drawn(row)
        return {slot: self._last[slot] for slot in ends}

    def leave(self, slot: int) -> None:
        """Empty a slot."""
        self._api.llama_memory_seq_rm(self._memory, slot, -1, -1)
        self._filled[slot] = 0

    def close(self) -> None:
        """Free batch, context and model."""
        if self._context:
            self._api.llama_batch_free(self._batch)
        super().close()

    def _put(self, at: int, token: int, slot: int, position: int) -> None:
        batch = self._batch
        batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
        batch.seq_id[at][0], batch.logits[at] = slot, 0
