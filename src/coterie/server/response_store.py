"""Stored responses, in this process's memory only, evicted in LRU order.

    response 1: [turn 1]    response 2: [turn 1, turn 2]    response 3, of 1 too: [turn 1, turn 3]

A turn is stored once, however many responses continue it, and for as long as one of them is. Knows nothing about HTTP
or models.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.core.errors import ForgottenError, shown

DEFAULT_BYTES = 64 * 2**20  # about a thousand conversations of a few pages each
ENTRY_BYTES = 1024  # Python's overhead per response
LINK_BYTES = 8  # per turn that a response continues
PREVIOUS = "previous_response_id"
_TO_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One response's new input items and its output items, as JSON lists in UTF-8."""

    given: bytes
    output: bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of both."""
        return len(self.given) + len(self.output)

    def items(self) -> list[dict[str, Any]]:
        """The items that a continuing response reads; without calls that were cut off, which were never made."""
        made = [item for item in json.loads(self.output) if item["type"] != "function_call" or _is_whole(item)]
        return [*json.loads(self.given), *made]


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response without its output, as JSON, and its turns; the last one is its own."""

    body: bytes
    turns: tuple[Turn, ...]

    @property
    def own_bytes(self) -> int:
        """Bytes freed with it, apart from its turns."""
        return len(self.body) + LINK_BYTES * len(self.turns) + ENTRY_BYTES

    def response(self) -> dict[str, Any]:
        """The response as it was returned."""
        return {**json.loads(self.body), "output": json.loads(self.turns[-1].output)}

    def input_items(self) -> list[dict[str, Any]]:
        """Its whole input: the earlier items, then those of its request."""
        earlier = [item for turn in self.turns[:-1] for item in turn.items()]
        return [*earlier, *json.loads(self.turns[-1].given)]


class ResponseStore:
    """Responses by owner and id, up to `max_bytes` in all; 0 stores none. Thread-safe."""

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes, self.size_bytes = max_bytes, 0
        self._lock = threading.Lock()
        self._stored: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()  # in LRU order
        self._uses: Counter[Turn] = Counter()

    def __len__(self) -> int:
        """The number of responses."""
        return len(self._stored)

    def put(self, owner: str, response: Mapping[str, Any], given: bytes, earlier: tuple[Turn, ...]) -> None:
        """Store a response to the input items `given`, which continues the `earlier` turns.

        Evicts others to make room for it; a response larger than the whole store is evicted at once.
        """
        about = {name: value for name, value in response.items() if name != "output"}
        turn = Turn(given, _TO_JSON(response["output"]).encode())
        stored = StoredResponse(_TO_JSON(about).encode(), (*earlier, turn))
        with self._lock:
            self._stored[(owner, response["id"])] = stored
            self.size_bytes += stored.own_bytes
            for one in stored.turns:
                self.size_bytes += 0 if self._uses[one] else one.size_bytes
                self._uses[one] += 1
            while self.size_bytes > self.max_bytes:
                self._leave(self._stored.popitem(last=False)[1])

    def find(self, owner: str, response_id: str) -> StoredResponse:
        """One of `owner`'s responses; counts as a use. Raises ForgottenError."""
        with self._lock:
            if (owner, response_id) not in self._stored:
                raise self._unknown(response_id)
            self._stored.move_to_end((owner, response_id))
            return self._stored[(owner, response_id)]

    def drop(self, owner: str, response_id: str) -> None:
        """Delete one of `owner`'s; responses that continue it keep its turn. Raises ForgottenError."""
        with self._lock:
            stored = self._stored.pop((owner, response_id), None)
            if stored is None:
                raise self._unknown(response_id)
            self._leave(stored)

    def check_integrity(self) -> None:
        """Raise RuntimeError unless the counted bytes are the stored ones, and within the limit."""
        with self._lock:
            uses = Counter(turn for stored in self._stored.values() for turn in stored.turns)
            own = sum(stored.own_bytes for stored in self._stored.values())
            there = own + sum(turn.size_bytes for turn in uses)
            if uses != self._uses or there != self.size_bytes or there > self.max_bytes:
                raise RuntimeError(f"{there} bytes are kept, {self.size_bytes} counted, {self.max_bytes} allowed")

    def _leave(self, stored: StoredResponse) -> None:
        self.size_bytes -= stored.own_bytes
        for turn in stored.turns:
            self._uses[turn] -= 1
            if not self._uses[turn]:
                del self._uses[turn]
                self.size_bytes -= turn.size_bytes

    def _unknown(self, response_id: str) -> ForgottenError:
        if not self.max_bytes:
            fact = f"is {shown(response_id)}, but this server stores no responses"
            return ForgottenError(
                PREVIOUS, fact, "send the whole conversation as input, or serve with --response-store 64MiB"
            )
        fact = f"is {shown(response_id)}, which is not stored: deleted, dropped for newer ones, or another client's"
        return ForgottenError(PREVIOUS, fact, "send the whole conversation as input")


@dataclass(frozen=True, slots=True)
class ClientStore:
    """The part of a store that belongs to one client."""

    store: ResponseStore
    owner: str

    @property
    def keeps(self) -> bool:
        """Whether anything is stored."""
        return self.store.max_bytes > 0

    def find(self, response_id: str) -> StoredResponse:
        """One of the client's responses. Raises ForgottenError."""
        return self.store.find(self.owner, response_id)

    def earlier_bytes(self, body: object) -> int:
        """Bytes of the stored turns that a request's body continues; 0 if it names none."""
        previous = body.get(PREVIOUS) if isinstance(body, dict) else None
        try:
            turns = self.find(previous).turns if isinstance(previous, str) else ()
        except ForgottenError:
            return 0
        return sum(turn.size_bytes for turn in turns)

    def item(self, item_id: str) -> dict[str, Any] | None:
        """One of the client's output items; None if it is not stored. Its id contains that of its response."""
        name = item_id.rpartition("_")[0].partition("_")[2]
        try:
            output = self.find(f"resp_{name}").turns[-1].output
        except ForgottenError:
            return None
        return next((item for item in json.loads(output) if item["id"] == item_id), None)

    def put(self, response: Mapping[str, Any], given: bytes, earlier: tuple[Turn, ...]) -> None:
        """Store a response."""
        self.store.put(self.owner, response, given, earlier)

    def drop(self, response_id: str) -> None:
        """Delete one of the client's. Raises ForgottenError."""
        self.store.drop(self.owner, response_id)


NONE_KEPT = ClientStore(ResponseStore(0), "")


def _is_whole(item: Mapping[str, Any]) -> bool:
    return item.get("status") == "completed"
