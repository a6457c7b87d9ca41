"""Experts whose files were touched: since their headers were read, only the status change time (ctime) differs.

        a load is about to begin -> stat of its files -> touched: headers read again -> loaded with those

chmod, a hard link and a backup do that, but so does a copy over a file that restores its times. So the weights are
assumed to be new: they are read whole at the load, including a scoring head, and nothing computed with the old ones is
kept. Running requests are recomputed, and end with an error if they would not have drawn the tokens already shown: no
answer mixes two sets of weights.
Knows nothing about requests.
"""

from __future__ import annotations

import os
from dataclasses import replace

from coterie.api.assemble import Options
from coterie.api.rescan import reopen, router_model
from coterie.api.texts import Text, open_texts
from coterie.checkpoint.layout import FileIdentity, Layout
from coterie.composition.composition import Composition
from coterie.composition.expert import Expert
from coterie.core.errors import UsageError
from coterie.engine.additions import is_in_memory, replace_layout
from coterie.engine.assembly import Parts
from coterie.models.model import Model


class Touched:
    """Called before each load from files, between two steps. `composition` says where the experts are."""

    def __init__(
        self,
        composition: Composition,
        parts: Parts,
        models: dict[str, Model],
        texts: dict[str, Text],
        options: Options,
    ) -> None:
        self._experts: dict[str, Expert] = {}
        self._parts, self._models, self._texts, self._options = parts, models, texts, options
        self.know(composition)

    def know(self, composition: Composition) -> None:
        """Update where experts are; removed ones keep their place, as they may still have requests."""
        own, spec = router_model(composition), composition.router
        self._experts = {name: expert for name, expert in self._experts.items() if name in self._models}
        # Not a model that has embedded examples: vectors by other weights are not comparable with those.
        asked = [own] if own is not None and spec is not None and not spec.examples else []
        self._experts |= {expert.name: expert for expert in (*composition.experts, *asked)}

    def __call__(self, name: str) -> None:
        """Serve an expert by its files' current headers, if only their ctimes have changed.

        If more has changed, or they cannot be read, nothing is done here: the load reports what is wrong.
        """
        was, expert = self._models.get(name), self._experts.get(name)
        if was is None or expert is None or is_in_memory(self._parts, name) or not is_touched(was.layout):
            return
        try:
            model = replace(reopen(expert, self._options, {}), base=was.base)
            # A scoring head is in the same file but not part of the layout.
            heads = {} if model.head is None else open_texts({name: model})
        except UsageError:
            return
        if (model.key, _untimed(model.layout)) == (was.key, _untimed(was.layout)):
            replace_layout(self._parts, name, model.layout)
            self._models[name] = model
            self._texts.update(heads)


def is_touched(layout: Layout) -> bool:
    """Whether, since their headers were read, some files' ctimes have changed and nothing else has."""
    files = {placed.source.path: placed.source.identity for placed in layout.ranges}
    try:
        now = {path: FileIdentity.of(os.stat(path)) for path in files if path}
    except OSError:
        return False
    others = {path: found for path, found in now.items() if found != files[path]}
    return bool(others) and all(
        replace(found, ctime_ns=files[path].ctime_ns) == files[path] for path, found in others.items()
    )


def _untimed(layout: Layout) -> Layout:
    """A copy with all ctimes zeroed."""
    ranges = []
    for placed in layout.ranges:
        identity = replace(placed.source.identity, ctime_ns=0)
        ranges.append(replace(placed, source=replace(placed.source, identity=identity)))
    return replace(layout, ranges=tuple(ranges))
