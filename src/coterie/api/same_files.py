"""Same files: which members of a fleet serve an expert from the same files, and a rescan's changes for the others.

Knows nothing about who asks, or how files are opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from coterie.api.coterie import Coterie
from coterie.api.member import Member
from coterie.api.rescan import Look
from coterie.models.model import Model


def serving(members: Iterable[Member], like: Coterie, expert: str) -> list[Member]:
    """The working members that serve an expert from the same files as `like` does."""
    return [one for one in members if one.broken is None and same_files(one.coterie, like, expert)]


def same_files(one: Coterie, other: Coterie, expert: str) -> bool:
    """Whether both serve an expert, from the same files: a rescan may renew it on one and find it busy on the other."""
    text, other_text = one.texts.get(expert), other.texts.get(expert)
    model, other_model = one.models.get(expert), other.models.get(expert)
    if text is None or other_text is None or model is None or other_model is None:
        return False
    served = (expert in one.composition.names) == (expert in other.composition.names)
    alike = (text is other_text or text.files == other_text.files) and (
        model is other_model or _weights(model) == _weights(other_model)
    )
    return served and alike


def _weights(model: Model | None) -> object:
    if model is None:
        return None
    sources = {placed.source for placed in model.layout.ranges}  # ctime says nothing about a file's content
    files = {(source.path, replace(source.identity, ctime_ns=0)) for source in sources if source.identity}
    return model.key, model.path, files, _weights(model.base)


def seen_by(coterie: Coterie, looked: Look, lead: Coterie) -> Look:
    """The look as this member would have taken it.

    It has what this member serves now, its routing, and what differs here from the lead since earlier rescans.
    """
    names = coterie.composition.names
    apart = {
        name: (lead.models[name], lead.texts[name])
        for name in lead.composition.names
        if name not in looked.was and not same_files(coterie, lead, name)
    }
    gone = frozenset(names).difference(looked.found.names, looked.found.left_out)
    was = {name: coterie.models.get(name) for name in (*looked.was, *apart)}
    return replace(looked, opened={**looked.opened, **apart}, was=was, gone=gone, before=coterie.routing)
