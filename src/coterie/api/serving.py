"""Serving: what may be asked of whatever answers for a composition: a Coterie on one device, or a Fleet on several.

    submit -> step ... -> chunks        what callers wait for by: stream, ask, ask_all, load, embed, rerank

Knows nothing about devices, or how queries are answered.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from coterie.api.expert_commands import ExpertCommands
from coterie.api.measuring import Measuring
from coterie.api.ready import Ready
from coterie.api.rescan import Look, Rescan
from coterie.api.status import Status
from coterie.api.texts import Text
from coterie.api.types import Answer, Chunk, Query
from coterie.api.watch import Sink, Waiting
from coterie.composition.composition import Composition
from coterie.composition.router import Route
from coterie.composition.routing import Routing
from coterie.core.errors import CoterieError, fresh
from coterie.core.trace import Trace
from coterie.models.model import Model

if TYPE_CHECKING:
    from coterie.api.coterie import Coterie

S = TypeVar("S", bound="Serving")
Since: TypeAlias = Callable[[str], None]

WAIT_S = 0.005  # a thread that waits for bytes lets others in this often: what they ask for may be there already


class Watching(Protocol):
    """Tells what happens, as `Watch` does."""

    def follow(self, sink: Sink | None) -> None:
        """Tell `sink` from now on, or nobody."""

    def waiting(self, request_id: str) -> Waiting | None:
        """What a query waits for."""


class Serving(Measuring, ExpertCommands):
    """Answers for a composition. Threads may share it. `models` and `texts` grow while a folder is served.

    `names`: what its devices are called. `steps_itself`: its devices step in threads of their own; so who asks what is
    answered between two steps waits for them, and need not keep others from `step` meanwhile.
    """

    steps_itself = False

    composition: Composition
    models: dict[str, Model]
    texts: dict[str, Text]
    routing: Routing
    watch: Watching
    names: tuple[str, ...]

    @property
    @abstractmethod
    def members(self) -> tuple[Coterie, ...]:
        """One for each device, for what is known of them: budgets, remarks, counts."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """True when nothing is queued or running, and every chunk was given out."""

    @property
    @abstractmethod
    def quiet(self) -> bool:
        """True when it is idle and no expert is being loaded: a step would change nothing."""

    @property
    def broken(self) -> Mapping[str, CoterieError]:
        """Why which of several devices answer nothing any more."""
        return {}

    def at_break(self, tell: Callable[[str, CoterieError, BaseException], None]) -> None:
        """Call `tell` with a device's name, the error and its cause when one of several breaks, in any thread: it must
        return at once.
        """

    @property
    def avoided(self) -> Mapping[str, CoterieError]:
        """Why which of several devices are asked only where no other one can be: they fail what others answer, or
        hang."""
        return {}

    def at_avoid(self, tell: Callable[[str, CoterieError | None], None]) -> None:
        """Call `tell` with a device's name and why when one of several is avoided from now on, with None when it is no
        more, in any thread: it must return at once.
        """

    def at_repin(self, tell: Callable[[str, str, CoterieError | None], None]) -> None:
        """Call `tell` of each expert that only a device had pinned which broke, in any thread: with the name of where
        it is pinned now, or with that of the one that broke and why it is pinned nowhere. It must return at once.
        """

    @abstractmethod
    def route(self, query: Query) -> Route:
        """The router's decision for a query, without running its expert. A model that the router asks is run.

        Other queries go on meanwhile, and their chunks are kept. Raises NotFoundError, RequestError, UnsupportedError,
        and ClosedError where a model must be asked.
        """

    @abstractmethod
    def ready(self, query: Query) -> Ready:
        """Do what of a query needs no engine, in any thread. Raises RequestError, NotFoundError, UnsupportedError."""

    @abstractmethod
    def submit(self, query: Query | Ready, more: int = 0) -> str:
        """Queue a query and return its id, if there is room for it and for `more` of the same client right after it.

        Raises RequestError, NotFoundError, OversizeError, CrowdedError or ClosedError, and queues nothing then. Where
        the router asks a model first, the expert may still refuse: then the last chunk has the error.
        """

    @abstractmethod
    def places(self, client: str = "") -> int | None:
        """How many more queries a client may let wait now; below 1: none, None: any number. Raises ClosedError."""

    @abstractmethod
    def step(self, within_s: float | None = None) -> list[Chunk]:
        """Let the engine take one step; what is new, per query. It waits at most `within_s` seconds for bytes.

        Raises ClosedError.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """End a `step` of several decode steps after the one that it is in. Any thread may call it."""

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """Stop a query; its last chunk says `cancelled`."""

    @abstractmethod
    def resident(self) -> tuple[str, ...]:
        """Experts in the run tier, least recently used first; then bases of adapters, which stay."""

    @abstractmethod
    def status(self) -> Status:
        """Where every expert is, what is queued and what was done, between two steps. Raises ClosedError."""

    def turns(self) -> Sequence[Future[None]]:
        """Of devices that step themselves a future each that is over when it has taken a turn: has ended a step, if it
        was in one.
        """
        return ()

    @abstractmethod
    def observe(self, sink: Sink, since: Since) -> tuple[Status, list[dict[str, Any]]]:
        """Tell `sink` what happens from now on; the status, and who lies in each tier. Raises ClosedError.

        `since` is called with each device's name (empty where there is one) as soon as what it tells is no part of
        these any more.
        """

    @abstractmethod
    def look_again(self) -> Look:
        """What is new in the file or folder, opened, in any thread. Raises what opening a composition does."""

    @abstractmethod
    def rescan(self, looked: Look | None = None) -> Rescan:
        """Serve what another look found, or else one now; who is gone is asked no more. Raises as that."""

    @abstractmethod
    def release_idle(self) -> int:
        """Unload all that is not pinned, KV state too, and give its memory back; how many bytes. 0 if not quiet."""

    @abstractmethod
    def trace(self) -> Trace:
        """What ran when, as far as it was recorded. Raises UsageError without Options.record."""

    @abstractmethod
    def close(self) -> None:
        """Stop the device and give its memory back. Later calls, and those under way, get a ClosedError."""

    @abstractmethod
    def _has_more(self, request_id: str) -> bool:
        """Whether chunks will come, or are kept."""

    @abstractmethod
    def abandon(self, request_ids: Sequence[str]) -> None:
        """Stop these if they go on, and keep nothing more of them."""

    def stream(self, query: Query) -> Iterator[Chunk]:
        """Submit a query and yield its chunks; leaving early cancels it. Other queries go on, their chunks are kept."""
        request_id = self.submit(query)
        try:
            while self._has_more(request_id):
                yield from self._advance_for({request_id})
        finally:
            self.abandon([request_id])

    def ask(self, query: Query | str) -> Answer:
        """Answer one query. Raises the CoterieError that ended it."""
        return self.ask_all([query])[0]

    def ask_all(self, queries: Sequence[Query | str]) -> list[Answer]:
        """Answer many queries, batched by the engine, in their order.

        Raises the first CoterieError; then the others are cancelled.
        """
        order: list[str] = []
        answers: dict[str, Answer] = {}
        try:
            for query in queries:
                asked = Query.text(query) if isinstance(query, str) else query
                order.append(self.submit(asked))  # where one is refused, those before it are cancelled below
            while len(answers) < len(order):
                for chunk in self._advance_for(set(order)):
                    if chunk.error is not None:
                        raise fresh(chunk.error)
                    if chunk.answer is not None:
                        answers[chunk.request_id] = chunk.answer
        finally:
            self.abandon(order)
        return [answers[request_id] for request_id in order]

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
