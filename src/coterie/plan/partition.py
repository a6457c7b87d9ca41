"""Splits a composition by model into parts that are served by separate machines.

    40 of an 8B and 10 of a 70B -> two parts, each with its share of the requests

Experts count as one model if they share a program; adapters and deltas count with their base. On a shared machine, a
small model's tokens wait for a large one's steps. Knows nothing about machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from coterie.composition.composition import Composition
from coterie.composition.routers.llm import ROUTER
from coterie.core.grouped import grouped
from coterie.models.model import Model
from coterie.plan.mix import F64


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part: experts by number in the whole composition, with their models and the router's.

    `shares`: relative to the part, with sum 1; `of_all`: the part's share of all requests.
    """

    label: str
    numbers: tuple[int, ...]
    composition: Composition
    models: Mapping[str, Model]
    shares: F64
    of_all: float


def whole(composition: Composition, models: Mapping[str, Model], shares: F64) -> Part:
    """The whole composition as a single part."""
    return Part(_label(composition.names), tuple(range(len(shares))), composition, models, shares, 1.0)


def by_model(composition: Composition, models: Mapping[str, Model], shares: F64) -> tuple[Part, ...]:
    """The parts, in the order of their first experts; parts without requests are left out."""
    of = [models[name] for name in composition.names]
    groups = grouped(((model.base or model).key, number) for number, model in enumerate(of))
    found = []
    for numbers in groups.values():
        of_all = float(shares[numbers].sum())
        if of_all > 0:
            experts = tuple(composition.experts[number] for number in numbers)
            names = {expert.name for expert in experts} | {ROUTER}
            of_part = {name: model for name, model in models.items() if name in names}
            part = replace(composition, experts=experts)
            found.append(Part(_label(part.names), tuple(numbers), part, of_part, shares[numbers] / of_all, of_all))
    return tuple(found)


def _label(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)}"
