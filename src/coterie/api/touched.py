"""Experts whose files were touched: they have another status time than when their headers were read, and nothing else.

        a load is about to begin -> stat of its files -> touched: headers read again -> loaded by what they say

chmod, a hard link and a backup do that, but so does a copy over a file that sets its times back. So the expert is taken
to have other weights: they are read whole when it comes in, a head that scores too, and nothing that was computed with
the former is kept.
Requests that run are computed again, and end where they would not have drawn what they have shown: no answer is by two
weights.
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
from coterie.engine.additions import is_there, serve_touched
from coterie.engine.assembly import Parts
from coterie.models.model import Model


class Touched:
    """Called before each load from files, in the engine's turn. `composition` says where experts are."""

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
        """Its experts are where it says now; who is not among them stays where it was, as it may still be asked."""
        own, spec = router_model(composition), composition.router
        self._experts = {name: expert for name, expert in self._experts.items() if name in self._models}
        # Not one that has made vectors of examples, which those of other weights cannot be compared with.
        asked = [own] if own is not None and spec is not None and not spec.examples else []
        self._experts |= {expert.name: expert for expert in (*composition.experts, *asked)}

    def __call__(self, name: str) -> None:
        """Serve an expert by the headers that its files have now, where only status times are others.

        What differs in more than that, or cannot be read, stays as it is: its load says what is wrong.
        """
        was, expert = self._models.get(name), self._experts.get(name)
        if was is None or expert is None or is_there(self._parts, name) or not is_touched(was.layout):
            return
        try:
            model = replace(reopen(expert, self._options, {}), base=was.base)
            # What scores is no part of a layout, and lies in the same file.
            heads = {} if model.head is None else open_texts({name: model})
        except UsageError:
            return
        if (model.key, _untimed(model.layout)) == (was.key, _untimed(was.layout)):
            serve_touched(self._parts, name, model.layout)
            self._models[name] = model
            self._texts.update(heads)


def is_touched(layout: Layout) -> bool:
    """Whether files have another status time than when their headers were read, and no file anything else."""
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
    """The same, as if no file had a status time."""
    ranges = []
    for placed in layout.ranges:
        identity = replace(placed.source.identity, ctime_ns=0)
        ranges.append(replace(placed, source=replace(placed.source, identity=identity)))
    return replace(layout, ranges=tuple(ranges))
