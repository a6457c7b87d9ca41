"""Opens a composition's experts as models: from their folders, or from a config alone where no bytes are needed.

Knows nothing about devices or memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from coterie.checkpoint.files import read_object
from coterie.checkpoint.folder import is_delta
from coterie.checkpoint.patience import Patience
from coterie.composition.composition import Composition
from coterie.composition.expert import Expert
from coterie.composition.folder import none_left
from coterie.core.dtypes import DType
from coterie.core.errors import CompositionError, CoterieError, UsageError
from coterie.models.fine_tunes.adapted import open_adapted
from coterie.models.fine_tunes.delta import open_delta
from coterie.models.fine_tunes.synthetic import synthetic_adapter, synthetic_delta
from coterie.models.model import Model, declared_dtype, open_model, synthetic_model
from coterie.models.packing import BY_NAME, KEY, WITHOUT_BYTES, Packing
from coterie.models.zoo import model_names, zoo_config

Shape: TypeAlias = tuple[str, str, int, str]  # config, weight type, adapter rank, type of a delta
TABLES_TYPE = DType.Q8  # for embedding and head, as in `coterie quantize`
_BASE = "base"


def open_experts(composition: Composition, synthetic: bool) -> dict[str, Model]:
    """Open every expert, and the router's own model, if any, as ROUTER: headers and configs, no weights.

    `synthetic`: models without bytes are acceptable.

    Raises CheckpointError and UnsupportedError, and CompositionError for an expert without bytes where bytes are
    needed.
    """
    opened: dict[Path, Model] = {}
    shapes: dict[Shape, Model] = {}
    asked = composition.router.model if composition.router is not None else None
    experts = composition.experts if asked is None else (*composition.experts, asked)
    models = {}
    with Patience(_folders(experts)) as patience:
        for expert in experts:
            patience.at(expert.name)
            models[expert.name] = _open(expert, synthetic, composition.name, shapes, opened)
    return models


def open_servable(
    composition: Composition, also: Callable[[Model], None] = lambda model: None, synthetic: bool = False
) -> tuple[Composition, dict[str, Model]]:
    """As `open_experts`, but leaves out experts that cannot be opened; the composition records why.

    `also` reads further files of each model. Raises what `without` does, and any error about the router's own model.
    """
    models, left_out = dict[str, Model](), dict(composition.left_out)
    opened, shapes = dict[Path, Model](), dict[Shape, Model]()
    asked = composition.router.model if composition.router is not None else None
    experts = composition.experts if asked is None else (*composition.experts, asked)
    with Patience(_folders(experts)) as patience:
        for expert in experts:
            patience.at(expert.name)
            try:
                model = _open(expert, synthetic, composition.name, shapes, opened)
                also(model)
                models[expert.name] = model
            except UsageError as error:
                if expert is asked:
                    raise
                left_out[expert.name] = error
    return without(composition, left_out, models)


def without(
    composition: Composition, left_out: Mapping[str, CoterieError], models: Mapping[str, Model]
) -> tuple[Composition, dict[str, Model]]:
    """The composition reduced to experts with models, and those models; drafts that were left out are unset.

    Raises CompositionError (or the only expert's error) if none is left, and if the router's fallback is left out.
    """
    kept = tuple([expert for expert in composition.experts if expert.name in models])
    if not kept:
        raise none_left(composition.source or composition.root, left_out)
    router = composition.router
    if router is not None and (why := left_out.get(router.fallback)):
        fact = f"fallback = {router.fallback!r} is left out: [{why.where}] {why.fact}"
        where = f"{composition.source or composition.name}: router.fallback"
        raise CompositionError(where, fact, f"{why.remedy}; or name another fallback")
    alone = {n: replace(model, draft=model.draft if model.draft in models else "") for n, model in models.items()}
    return replace(composition, experts=kept, left_out=left_out), alone


def _folders(experts: Iterable[Expert]) -> dict[str, Path]:
    """The folders of those experts that have weights."""
    return {expert.name: expert.checkpoint for expert in experts if expert.checkpoint is not None}


def open_expert(expert: Expert, checkpoint: Path, opened: dict[Path, Model] | None = None) -> Model:
    """Open an expert that has bytes; for an adapter or a delta, also its base.

    `opened`: caches opened checkpoints by folder. Raises CheckpointError and UnsupportedError.
    """
    opened = {} if opened is None else opened
    folder = (expert.base or checkpoint).resolve()
    if folder not in opened:
        opened[folder] = open_model(expert.base or checkpoint)
    if expert.base is not None:
        opener = open_delta if is_delta(checkpoint) else open_adapted
        return _with_settings(opener(opened[folder], checkpoint, expert.name), expert)
    return _with_settings(replace(opened[folder], name=expert.name), expert)


def _with_settings(model: Model, expert: Expert) -> Model:
    """The model with the composition's settings: its draft expert, and sampling, which overrides the checkpoint's."""
    model = replace(model, draft=expert.draft)
    if not expert.sampling.explicit:
        return model
    return replace(model, advised=replace(model.advised, sampling=expert.sampling.over(model.advised.sampling)))


def _open(expert: Expert, synthetic: bool, where: str, shapes: dict[Shape, Model], opened: dict[Path, Model]) -> Model:
    """Open an expert from its folder, or make a model without bytes from its config where `synthetic` allows it.

    `shapes`: caches models without bytes; experts of one shape differ only by name, and share their base.
    """
    if expert.checkpoint is not None:
        return open_expert(expert, expert.checkpoint, opened)
    if not synthetic:
        fact = f"expert {expert.name} has a config but no weights"
        raise CompositionError(where, fact, "give it a checkpoint, or use --device synthetic:MACHINE")
    shape = (expert.config or "", expert.packed, expert.rank, expert.delta)
    if shape not in shapes:
        shapes[shape] = _synthetic(expert, shape, where, shapes)
    return _with_settings(replace(shapes[shape], name=expert.name), expert)


def _synthetic(expert: Expert, shape: Shape, where: str, shapes: dict[Shape, Model]) -> Model:
    """A model without bytes: a whole one, or an adapter or delta on a base without bytes."""
    config, packed, rank, delta = shape
    if not (rank or delta):
        return _synthetic_whole(config, packed, expert.name, where)
    own = (config, packed, 0, _BASE)  # distinct from a whole expert of this config, which has weights of its own
    if own not in shapes:
        shapes[own] = _synthetic_whole(
            config, packed, f"{Path(config).name.removesuffix('.json')} {packed}".strip(), where
        )
    base = shapes[own]
    return synthetic_adapter(base, rank, expert.name) if rank else synthetic_delta(base, BY_NAME[delta], expert.name)


def _synthetic_whole(config: str, packed: str, name: str, where: str) -> Model:
    if config in model_names():
        raw = zoo_config(config)
        activations = declared_dtype(raw, config)
    elif Path(config).is_file():
        raw, activations = read_object(Path(config)), DType.F32
    else:
        fact = f"config {config!r} of {name} is neither a file nor a model of the zoo"
        raise CompositionError(where, fact, f"give a config.json, or one of {', '.join(model_names())}")
    if packed:
        if raw.get(KEY):
            fact = f"packed = {packed!r}, but {config} has a {KEY} of its own"
            raise CompositionError(f"{where}: {name}", fact, "leave packed out")
        tables = None if packed in WITHOUT_BYTES else TABLES_TYPE  # other types leave embedding and head as they are
        raw = {**raw, KEY: Packing({**BY_NAME, **WITHOUT_BYTES}[packed], tables).to_config()}
    return synthetic_model(raw, name, activations)
