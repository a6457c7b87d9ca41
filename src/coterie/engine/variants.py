"""Variants: adapters or deltas of one base and one program, whose sequences share steps: the base is read once for all.

    groups    sql 3 running | tax 1 waiting | poems 2 running        sql and tax are variants, both resident
    together  sql + tax: 3 running, 1 waiting | poems                one of these runs next, as if it were one expert

Knows nothing about how a step is computed, or what variants have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from coterie.core.values import value

if TYPE_CHECKING:
    from coterie.engine.served import ServedExpert
    from coterie.engine.view import Group


@value
class Mix:
    """Which expert each sequence of a shared step belongs to: the experts, and each sequence's index among them."""

    experts: tuple[str, ...]
    expert_B: tuple[int, ...]


def variant_groups_of(experts: Mapping[str, ServedExpert]) -> dict[str, str]:
    """The experts that can share steps with others, each mapped to its group, named after the group's first expert."""
    alike: dict[object, list[str]] = {}
    for expert_id, expert in experts.items():
        shared = expert.places[1] if expert.base is not None else None
        if shared is not None and expert.exe.mixes(shared.indices):
            alike.setdefault((id(expert.exe), shared), []).append(expert_id)
    return {expert_id: ids[0] for ids in alike.values() if len(ids) > 1 for expert_id in ids}


def join_variants(groups: list[Group], current: str | None) -> list[Group]:
    """The groups, with all variants that can share a step now joined into one, under the name of one of them.

    That is the variant that ran last, if present; else a running one, by best priority, then oldest request.
    """
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.variant_group:
            found.setdefault(group.variant_group, []).append(group)
    of = {group.expert_id: _joined(its, current) for its in found.values() if len(its) > 1 for group in its}
    # A joined group takes the position of its first variant.
    return list({joined.expert_id: joined for joined in [of.get(g.expert_id, g) for g in groups]}.values())


def _joined(variants: Sequence[Group], current: str | None) -> Group:
    first = next((group for group in variants if group.expert_id == current), None)
    first = first or min(variants, key=lambda group: (not group.running, group.priority, group.oldest))
    waiting = sorted([one for group in variants for one in group.waiting], key=lambda one: (one.priority, one.number))
    priority, oldest = min([(group.priority, group.oldest) for group in variants])
    return replace(
        first,
        waiting=tuple(waiting),
        num_waiting=sum([group.num_waiting for group in variants]),
        running=sum([group.running for group in variants]),
        oldest=oldest,
        last_run=max([group.last_run for group in variants]),
        partners=tuple([group.expert_id for group in variants if group is not first]),
        priority=priority,
        running_priorities=tuple([rank for group in variants for rank in group.running_priorities]),
    )


def largest_group(variant_groups: Iterable[str]) -> int:
    """The size of the largest of these groups; 0 if there are none."""
    counts: dict[str, int] = {}
    for name in variant_groups:
        counts[name] = counts.get(name, 0) + 1
    return max(counts.values(), default=0)
