"""Traces: a timeline per lane, as a file that Perfetto and Chrome's tracing page open.

    lane         |--slice--|   |--slice--|        slices of one lane do not overlap
    async        |---- a request, from arrival to its last token ----|

Format: "Trace Event Format" of the Chromium project (JSON object form; times in microseconds).
Knows nothing about what is traced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from coterie.core.errors import UsageError, shown

Value: TypeAlias = int | float | str
_PROCESS = 1
_US = 1e6


@dataclass(frozen=True, slots=True)
class Slice:
    """Work on a lane. `kind`: a category to filter by; `args`: details shown on click."""

    lane: str
    kind: str
    name: str
    start_s: float
    end_s: float
    args: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Async:
    """An asynchronous span that belongs to no lane; `key` is unique within its kind."""

    kind: str
    key: str
    name: str
    start_s: float
    end_s: float
    args: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """Slices and asynchronous spans. `notes`: metadata, such as the device or what was dropped."""

    slices: Sequence[Slice]
    asyncs: Sequence[Async] = ()
    notes: Mapping[str, Value] = field(default_factory=dict)

    @property
    def lanes(self) -> tuple[str, ...]:
        """Names of the lanes, in order of their first slice."""
        return tuple(dict.fromkeys(s.lane for s in sorted(self.slices, key=lambda s: s.start_s)))


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace; time zero is its earliest start. Raises UsageError when the file cannot be written."""
    zero = min([*(item.start_s for item in trace.slices), *(item.start_s for item in trace.asyncs)], default=0.0)
    threads = {lane: number for number, lane in enumerate(trace.lanes, start=1)}
    events: list[dict[str, Any]] = [_meta("process_name", 0, "coterie")]
    for lane, thread in threads.items():
        events += [_meta("thread_name", thread, lane), _meta("thread_sort_index", thread, thread)]
    for item in trace.slices:
        events.append(
            _event("X", item, item.start_s - zero, tid=threads[item.lane], dur=_us(item.end_s - item.start_s))
        )
    for beside in trace.asyncs:
        events.append(_event("b", beside, beside.start_s - zero, tid=0, id=beside.key))
        events.append(_event("e", beside, beside.end_s - zero, tid=0, id=beside.key))
    whole = {"displayTimeUnit": "ms", "otherData": dict(trace.notes), "traceEvents": events}
    try:
        path.write_text(json.dumps(whole, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    except OSError as error:
        raise UsageError("--trace", f"{path} cannot be written: {error.strerror}", "choose another file") from error


def read_trace(path: Path) -> Trace:
    """Read a file written by `write_trace`. Raises UsageError for anything else."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        events = whole["traceEvents"]
        lanes = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
        slices = [_slice(event, lanes[event["tid"]]) for event in events if event["ph"] == "X"]
        beside = sorted((e for e in events if e["ph"] in "be"), key=lambda e: (e["cat"], e["id"], e["ts"], e["ph"]))
        asyncs = [_async(list(ends)) for _, ends in groupby(beside, key=lambda e: (e["cat"], e["id"]))]
    except OSError as error:
        raise UsageError(str(path), f"cannot be read: {error.strerror}", "give a file of --trace") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(str(path), f"is no trace of ours: {error!r}", "give a file of --trace") from error
    return Trace(slices, asyncs, whole.get("otherData", {}))


def _event(phase: str, item: Slice | Async, at_s: float, **more: Any) -> dict[str, Any]:
    base = {"ph": phase, "cat": item.kind, "name": item.name, "pid": _PROCESS, "ts": _us(at_s)}
    return {**base, **more, "args": dict(item.args) if phase != "e" else {}}


def _meta(name: str, thread: int, value: Value) -> dict[str, Any]:
    key = "sort_index" if name.endswith("index") else "name"
    return {"ph": "M", "name": name, "pid": _PROCESS, "tid": thread, "args": {key: value}}


def _us(seconds: float) -> float:
    return round(seconds * _US, 3)


def _slice(event: Mapping[str, Any], lane: str) -> Slice:
    _check(event, lane)
    start = event["ts"] / _US
    return Slice(lane, event["cat"], event["name"], start, start + event["dur"] / _US, event["args"])


def _check(event: Mapping[str, Any], lane: Any) -> None:
    if not all(isinstance(text, str) for text in (lane, event["cat"], event["name"])):
        raise TypeError(f"{shown(event['name'])} has a lane, a kind or a name that is no text")
    if not isinstance(event["args"], dict):
        raise TypeError(f"{shown(event['name'])} has args that are no object")


def _async(ends: Sequence[Mapping[str, Any]]) -> Async:
    first, last = ends[0], ends[-1]
    _check(first, "")
    return Async(first["cat"], first["id"], first["name"], first["ts"] / _US, last["ts"] / _US, first["args"])
