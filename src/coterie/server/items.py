"""Output items of a response: reasoning, messages and function calls, and their events.

    thoughts, text, calls -> item added -> part added -> delta delta ... -> part done -> item done      one by one

Knows nothing about responses around them. Source: the OpenAI API reference, "Streaming events".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coterie.api.logprobs import TokenLogprob
from coterie.checkpoint.calls import Call, CallReader, More
from coterie.server.choosing import with_top
from coterie.server.token_texts import TokenTexts
from coterie.server.tools import found_in, new_call_id


class Items:
    """Writes one answer's items. `name`: the base of their ids. `output`: the items so far."""

    def __init__(self, reader: CallReader | None, name: str) -> None:
        self._reader, self._name = reader, name
        self._tokens = TokenTexts()
        self.output: list[dict[str, Any]] = []

    def think(self, text: str) -> Iterator[dict[str, Any]]:
        """The events for new reasoning."""
        if text:
            if not self.output or self.output[-1]["type"] != "reasoning":
                yield from self._close("completed")
                yield from self._begin_of("reasoning", "rs", {"summary": []}, {"type": "reasoning_text", "text": ""})
            self.output[-1]["content"][0]["text"] += text
            yield {"type": "response.reasoning_text.delta", **self._part(), "delta": text}

    def push(self, text: str, last: bool = False, tokens: tuple[TokenLogprob, ...] = ()) -> Iterator[dict[str, Any]]:
        """The events for new text; `tokens`: its tokens, one or few, if logprobs are requested."""
        if tokens:
            self._tokens.put(text, tokens)
        for item in found_in(self._reader, text, last):
            yield from self._push_text(item) if isinstance(item, str) else self._push_call(item)

    def end(self, cut: bool) -> Iterator[dict[str, Any]]:
        """The last events; `cut`: a last item that is not a call is incomplete. Ensures at least one item."""
        yield from self.push("", last=True)
        if not self.output or (self.output[-1]["type"] == "reasoning" and not cut):
            yield from self._close("completed")
            yield from self._begin_message()
        if self.output[-1]["type"] == "function_call":
            cut = self._reader is not None and self._reader.cut
        yield from self._close("incomplete" if cut else "completed")

    def _push_text(self, text: str) -> Iterator[dict[str, Any]]:
        if not self.output or self.output[-1]["type"] != "message":
            yield from self._close("completed")
            yield from self._begin_message()
        part = self.output[-1]["content"][0]
        part["text"] += text
        logprobs = [with_top(one) for _, tokens in self._tokens.take(text) for one in tokens]
        part["logprobs"] += logprobs
        yield {"type": "response.output_text.delta", **self._part(), "delta": text, "logprobs": _streamed(logprobs)}

    def _push_call(self, item: Call | More) -> Iterator[dict[str, Any]]:
        self._tokens.forget(last=1)  # that one may also belong to what follows the call
        if isinstance(item, Call):
            yield from self._close("completed")
            made = {"type": "function_call", "id": self._id("fc"), "call_id": new_call_id(), "name": item.name}
            yield from self._begin({**made, "arguments": "", "status": "in_progress"})
        if item.arguments:
            self.output[-1]["arguments"] += item.arguments
            yield {"type": "response.function_call_arguments.delta", **self._place(), "delta": item.arguments}

    def _begin_message(self) -> Iterator[dict[str, Any]]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield from self._begin_of("message", "msg", {"role": "assistant"}, part)

    def _begin_of(
        self, kind: str, letters: str, more: dict[str, Any], part: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Start an item with one part."""
        made = {"type": kind, "id": self._id(letters), **more, "status": "in_progress"}
        yield from self._begin({**made, "content": []})
        yield {"type": "response.content_part.added", **self._part(), "part": dict(part)}
        self.output[-1]["content"].append(part)

    def _begin(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.output.append(item)
        added = {**item, "content": []} if "content" in item else dict(item)
        yield {"type": "response.output_item.added", "output_index": len(self.output) - 1, "item": added}

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        """Finish the last item, if there is one."""
        if not self.output:
            return
        item = self.output[-1]
        item["status"] = status
        if "content" in item:
            (part,) = item["content"]
            is_message = item["type"] == "message"
            done = {"type": f"response.{part['type']}.done", **self._part(), "text": part["text"]}
            yield {**done, "logprobs": _streamed(part["logprobs"])} if is_message else done
            yield {"type": "response.content_part.done", **self._part(), "part": part}
        else:
            done = {"type": "response.function_call_arguments.done", **self._place()}
            yield {**done, "name": item["name"], "arguments": item["arguments"]}
        yield {"type": "response.output_item.done", "output_index": len(self.output) - 1, "item": item}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    def _part(self) -> dict[str, Any]:
        return {**self._place(), "content_index": 0}

    def _id(self, kind: str) -> str:
        return f"{kind}_{self._name}_{len(self.output)}"


def _streamed(logprobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A part's logprobs in the format of events: without bytes."""
    tops = [[_unspelled(other) for other in one["top_logprobs"]] for one in logprobs]
    return [{**_unspelled(one), "top_logprobs": top} for one, top in zip(logprobs, tops, strict=True)]


def _unspelled(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": one["token"], "logprob": one["logprob"]}
