"""The serving engine on a device that records its runs, and requests of made-up tokens to it.

Knows nothing about what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.bench.step import prompt_ids
from coterie.device import Binding, Buffer, Event, Executable
from coterie.devices.cpu.device import CpuDevice
from coterie.engine.assembly import Parts, Settings, page_bytes, plan, wire
from coterie.engine.policy import Policy
from coterie.engine.request import Output, Request, Timings
from coterie.models.model import Model

COLD_TOKENS = 2  # tokens of a cold request: see ask
TURN_STEPS = 2  # the first step of a turn follows one of another expert, the second one of the same


@dataclass(frozen=True, slots=True)
class _Run:
    """A run on the compute lane: the weights that it read, and its number of tokens."""

    event: Event
    weights: Buffer
    tokens: int


class RecordingDevice(CpuDevice):
    """A CPU device that records its runs, so that the gaps between them can be measured afterwards."""

    def __init__(self, threads: int | None) -> None:
        super().__init__(threads=threads)
        self.runs: list[_Run] = []

    def run(
        self,
        exe: Executable,
        binding: Binding,
        gates: Mapping[str, Event] | None = None,
        steps: int = 1,
        after: Any = (),
    ) -> Event:
        """As CpuDevice.run, and recorded."""
        event = super().run(exe, binding, gates, steps, after)
        self.runs.append(_Run(event, binding.weights, len(binding.rows.tokens_T)))
        return event


def serve_models(
    models: tuple[Model, ...], residents: int, tokens: int, threads: int | None, record: int = 0
) -> tuple[Parts, RecordingDevice]:
    """The serving engine, with room for `residents` experts and two sequences of `tokens`.

    `record`: how many pieces of work to keep for a trace.
    """
    settings = settings_for(models, residents, tokens, record)
    named = {model.name: model for model in models}
    device = RecordingDevice(threads)
    try:
        return wire(named, plan(named, device.spec, settings), settings, device), device
    except BaseException:
        device.close()
        raise


def settings_for(models: tuple[Model, ...], residents: int, tokens: int, record: int = 0) -> Settings:
    """The settings of serve_models, for any device."""
    block = page_bytes(models[0].kv)
    pages = models[0].kv.blocks_for(tokens, block)
    return Settings(
        near_bytes=residents * models[0].layout.size_bytes,
        kv_bytes=2 * pages * block,
        policy=Policy(quantum_steps=TURN_STEPS, max_steps=1, max_guesses=0),
        record=record,
    )


def request(model: Model, request_id: str, prompt: int, max_tokens: int) -> Request:
    """A request of `prompt` made-up tokens, the same for all models with the same vocabulary size."""
    ids = tuple(prompt_ids(model, prompt))
    return Request(request_id, model.name, ids, max_tokens, ignore_end=True, reuse=False)


def ask(parts: Parts, model: Model, request_id: str, prompt: int, tokens: int = 1) -> Timings:
    """Serve one prompt, for `tokens` tokens; the engine's own timings. Raises the CoterieError that ended it.

    A cold expert's first token may come before all of its bytes have, since embedding rows that the prompt does not
    need arrive last. To time the arrival of the whole expert, ask for two tokens.
    """
    parts.engine.submit(request(model, request_id, prompt, tokens))
    while True:
        for output in parts.engine.step():
            raise_failure(output)
            if output.timings is not None:
                return output.timings


def raise_failure(output: Output) -> None:
    """Raise the CoterieError that ended a request, if one did."""
    if output.error is not None:
        raise output.error


def ttft(timings: Timings) -> float:
    """Seconds from arrival to first token."""
    if timings.ttft_s is None:
        raise RuntimeError("a request that ended well has no first token")
    return timings.ttft_s
