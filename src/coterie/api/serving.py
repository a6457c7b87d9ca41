"""Serving: the interface of whatever answers for a composition: a Coterie on one device, or a Fleet on several.

    submit -> step ... -> chunks        blocking calls built on these: stream, ask, ask_all, load, embed, rerank

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

WAIT_S = 0.005  # a thread that waits for a load releases the lock this often: others' requests may be resident


class Watching(Protocol):
    """Reports events, as `Watch` does."""

    def follow(self, sink: Sink | None) -> None:
        """Report events to `sink` from now on; None: stop."""

    def waiting(self, request_id: str) -> Waiting | None:
        """What a query waits for."""


class Serving(Measuring, ExpertCommands):
    """Answers for a composition. Thread-safe. `models` and `texts` grow while a folder is served.

    `names`: its devices' names. `steps_itself`: its devices step in threads of their own; a call that is answered
    between two steps then waits for those threads, and need not keep others from `step` meanwhile.
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
        """One per device, for its budgets, notes and counts."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """True if nothing is queued or running, and every chunk has been returned."""

    @property
    @abstractmethod
    def quiet(self) -> bool:
        """True if it is idle and no expert is being loaded: a step would change nothing."""

    @property
    def broken(self) -> Mapping[str, CoterieError]:
        """The devices, of several, that have stopped for good, with the errors."""
        return {}

    def on_break(self, callback: Callable[[str, CoterieError, BaseException], None]) -> None:
        """Register a callback for a device, of several, that breaks, with the error and its cause.

        It runs in any thread and must return at once.
        """

    @property
    def avoided(self) -> Mapping[str, CoterieError]:
        """Of several devices, those asked only if no other can be, as they hang or fail what others answer."""
        return {}

    def on_avoid(self, callback: Callable[[str, CoterieError | None], None]) -> None:
        """Register a callback for a device, of several, that becomes avoided, with the reason, or no longer is (None).

        It runs in any thread and must return at once.
        """

    def on_repin(self, callback: Callable[[str, str, CoterieError | None], None]) -> None:
        """Register a callback for each expert that only a broken device had pinned.

        It gets the name of the device where the expert is pinned now, or that of the broken one and the error if it is
        pinned nowhere. It runs in any thread and must return at once.
        """

    @abstractmethod
    def route(self, query: Query) -> Route:
        """The router's decision for a query, without running its expert. A model that the router asks is run.

        Other queries continue meanwhile, and their chunks are kept. Raises NotFoundError, RequestError,
        UnsupportedError, and ClosedError if a model must be asked.
        """

    @abstractmethod
    def ready(self, query: Query) -> Ready:
        """Prepare a query for the engine, in any thread. Raises RequestError, NotFoundError, UnsupportedError."""

    @abstractmethod
    def submit(self, query: Query | Ready, more: int = 0) -> str:
        """Queue a query and return its id, if the queue has room for it and for `more` of the same client to follow.

        Raises RequestError, NotFoundError, OversizeError, CrowdedError or ClosedError, and then queues nothing. If the
        router asks a model first, the expert may still refuse the query later: the last chunk then has the error.
        """

    @abstractmethod
    def places(self, client: str = "") -> int | None:
        """How many more queries a client may queue now; below 1: none, None: unlimited. Raises ClosedError."""

    @abstractmethod
    def step(self, within_s: float | None = None) -> list[Chunk]:
        """Take one engine step; returns the new chunks of each query. Waits at most `within_s` seconds for loads.

        Raises ClosedError.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make a `step` that runs several decode steps stop after the current one. Any thread may call it."""

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """Stop a query; the finish reason of its last chunk is `cancelled`."""

    @abstractmethod
    def resident(self) -> tuple[str, ...]:
        """Experts in the run tier, least recently used first; then the bases of adapters, which are never evicted."""

    @abstractmethod
    def status(self) -> Status:
        """Where every expert is, what is queued and what has been done, between two steps. Raises ClosedError."""

    def next_turns(self) -> Sequence[Future[None]]:
        """For each device that steps itself, a future that is done after its next turn, hence after any step."""
        return ()

    @abstractmethod
    def observe(self, sink: Sink, since: Since) -> tuple[Status, list[dict[str, Any]]]:
        """Report events to `sink` from now on; returns the status, and the residents of each tier. Raises ClosedError.

        `since` is called with each device's name (empty if there is only one) at the moment from which its events are
        not included in these.
        """

    @abstractmethod
    def look_again(self) -> Look:
        """What has changed in the file or folder, opened, in any thread. Raises what opening a composition does."""

    @abstractmethod
    def rescan(self, looked: Look | None = None) -> Rescan:
        """Serve what `look_again` found, or would find now; removed experts get no new requests. Raises the same."""

    @abstractmethod
    def release_idle(self) -> int:
        """Unload all that is not pinned, including KV state, and free its memory; returns the bytes. 0 if not quiet."""

    @abstractmethod
    def trace(self) -> Trace:
        """What ran when, as far as it was recorded. Raises UsageError without Options.record."""

    @abstractmethod
    def close(self) -> None:
        """Stop the device and free its memory. Later calls, and those in progress, raise ClosedError."""

    @abstractmethod
    def _has_more(self, request_id: str) -> bool:
        """Whether more chunks will come or are kept."""

    @abstractmethod
    def abandon(self, request_ids: Sequence[str]) -> None:
        """Stop these queries and discard their remaining chunks."""

    def stream(self, query: Query) -> Iterator[Chunk]:
        """Submit a query and yield its chunks; leaving early cancels it. Chunks of other queries are kept."""
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

        Raises the first CoterieError, and then cancels the others.
        """
        order: list[str] = []
        answers: dict[str, Answer] = {}
        try:
            for query in queries:
                asked = Query.text(query) if isinstance(query, str) else query
                order.append(self.submit(asked))  # if one is refused, those before it are cancelled below
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
