"""Routes without a device: where prompts would be served, opening only the experts that must be consulted.

    prompt -> router -> its expert, opened (headers and tokenizer) -> too long for it? -> the next, opened ...

Knows nothing about memory: each expert is assumed to have room for a whole context, or for what a KV cache of a given
size holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from coterie.api.ready import Experts, route_that_fits
from coterie.api.texts import Text, open_texts
from coterie.api.types import Query, prompt_of
from coterie.composition.composition import Composition
from coterie.composition.router import Route
from coterie.composition.routing import Routing
from coterie.engine.assembly import block_bytes_for
from coterie.engine.experts import open_experts, open_servable
from coterie.engine.kv import tokens_held
from coterie.graph.program import KvShape
from coterie.models.model import AUTO, Model, with_kv_type


class _Models(dict[str, Model]):
    """Models by name, opened on first use; those without bytes are allowed."""

    def __init__(self, composition: Composition, kv_type: str) -> None:
        self._composition, self.kv_type = composition, kv_type

    def __missing__(self, name: str) -> Model:
        alone = replace(self._composition, experts=(self._composition.expert(name),), router=None)
        self[name] = with_kv_type(open_experts(alone, synthetic=True)[name], self.kv_type)
        return self[name]


class _Texts(dict[str, Text]):
    """Texts by name, opened on first use."""

    def __init__(self, models: _Models) -> None:
        self._models = models

    def __missing__(self, name: str) -> Text:
        self.update(open_texts({name: self._models[name]}))
        return self[name]


def served_routes(
    composition: Composition, texts: list[str], kv_bytes: int | None = None, kv_type: str = AUTO
) -> list[Route]:
    """Where each text would go, with a KV cache of this size if given. For routers that ask no model.

    Raises what routing does, what opening an expert does (CheckpointError, UnsupportedError), and CapacityError if the
    KV cache has no block.
    """
    routing, models = Routing(composition), _Models(composition, kv_type)
    held = (lambda kv: sys.maxsize) if kv_bytes is None else _held(composition, models, kv_bytes)
    experts = Experts(_Texts(models), models, held)

    def route(text: str) -> Route:
        query = Query.text(text)
        begun = routing.begin(prompt_of(query), unfit=lambda name: experts.texts[name].unfit(query))
        found = routing.finish(begun)
        if begun.route is not None:  # an expert that was named is final
            return found
        return route_that_fits(query, begun.prompt, found, routing.others, experts)[0]

    return [route(text) for text in texts]


def _held(composition: Composition, models: _Models, kv_bytes: int) -> Callable[[KvShape], int]:
    """The KV cache's capacity in tokens, for any KV shape. Opens all experts: the block size is their largest page."""
    if composition.skips_unservable:
        composition, found = open_servable(composition)
        models.update({name: with_kv_type(model, models.kv_type) for name, model in found.items()})
    block = block_bytes_for({name: models[name] for name in composition.names}, kv_bytes)
    return lambda kv: tokens_held(kv_bytes // block, block, kv)
