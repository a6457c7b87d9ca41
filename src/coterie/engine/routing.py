"""RoutingJob: routes one prompt with a router that may query models first; a state machine that its caller drives.

    RoutingJob(router, prompt) -> asks --(run by the engine, outputs given back)--> route

Knows nothing about engines or tokenizers: the caller turns an Ask into a Request of that id, and returns its outputs.
"""

from __future__ import annotations

from coterie.composition.router import Ask, Prompt, Route, Router
from coterie.core.errors import CoterieError, fresh
from coterie.engine.request import Output


class RoutingJob:
    """The routing of one prompt. Without asks, it is done at once."""

    def __init__(self, job_id: str, router: Router, prompt: Prompt) -> None:
        self._router, self._prompt = router, prompt
        asks = router.ask(prompt)
        self.asks: dict[str, Ask] = {f"{job_id}/ask-{index}": ask for index, ask in enumerate(asks)}
        self._answers: dict[str, str] = dict.fromkeys(self.asks, "")
        self._vectors: dict[str, tuple[float, ...]] = {}
        self._open = set(self.asks)
        self.error: CoterieError | None = None

    def take(self, output: Output) -> bool:
        """Take an output if it answers one of the asks; False if it belongs to another request."""
        if output.request_id not in self.asks:
            return False
        self._answers[output.request_id] += output.text
        if output.vector:
            self._vectors[output.request_id] = output.vector
        if output.finish_reason is not None:
            self._open.discard(output.request_id)
            self.error = self.error or output.error
        return True

    @property
    def done(self) -> bool:
        """True when every ask is answered, or one has failed."""
        return self.error is not None or not self._open

    def route(self) -> Route:
        """The decision. Raises the error of a failed ask; ValueError if it is not `done`."""
        if self.error is not None:
            raise fresh(self.error)
        if self._open:
            raise ValueError(f"{len(self._open)} asks are not answered yet")
        results = [self._vectors.get(ask_id, answer) for ask_id, answer in self._answers.items()]
        return self._router.decide(self._prompt, results)
