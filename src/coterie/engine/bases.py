"""The bases that adapters share: which ones there are, and how they are loaded into the run tier at start.

    models -> bases_of: name -> model          name: that of the expert whose folder it is, else the folder
           -> load_bases: all of them, once, never evicted

Knows nothing about requests, or about what an adapter computes.
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.composition.routers.llm import ROUTER
from coterie.device import Device, wait_for
from coterie.engine.served import Base
from coterie.memory.cache import ExpertCache
from coterie.memory.slab import round_up
from coterie.models.model import Model


def bases_of(models: Mapping[str, Model]) -> dict[str, Model]:
    """The bases of all adapters; a base that is itself served has the name of the first expert with its folder."""
    found = {folder_of(model.base): model.base for model in models.values() if model.base is not None}
    names: dict[str, str] = {}
    for name, model in models.items():
        if model.base is None and model.path is not None and name != ROUTER:
            names.setdefault(folder_of(model), name)
    return {names.get(folder, folder): base for folder, base in found.items()}


def base_of(model: Model, bases: Mapping[str, Model]) -> str:
    """The name of this adapter's base; empty for a model that is not an adapter."""
    if model.base is None:
        return ""
    folder = folder_of(model.base)
    return next(name for name, base in bases.items() if folder_of(base) == folder)


def size_of(bases: Mapping[str, Model]) -> int:
    """Bytes of all of them in the run tier."""
    return sum(round_up(base.layout.size_bytes) for base in bases.values())


def load_bases(device: Device, bases: Mapping[str, Model]) -> tuple[ExpertCache, dict[str, Base]]:
    """Load all bases into their own part of the run tier, and wait.

    Raises CapacityError, and the failure of a load.
    """
    cache = ExpertCache(device, {device.spec.run_tier: size_of(bases)})
    found = {}
    for name, base in bases.items():
        residency = cache.want(name, base.layout, uses=0)
        if residency.ready is not None:
            wait_for(device, residency.ready)
        for _, failure in cache.poll():
            if failure is not None:
                raise failure
        found[name] = Base(base.layout, residency.weights)
    return cache, found


def folder_of(model: Model) -> str:
    """The folder that identifies a base; the model's name if it has no files."""
    return model.name if model.path is None else str(model.path.resolve())
