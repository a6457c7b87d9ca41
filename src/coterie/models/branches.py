"""Layers with branches (mixture of experts inside a model): how many there are, how wide, which a token takes.

In a layer the word is branch, since an expert is a whole model here, and what chooses among them is its chooser, since
a router chooses among experts. Knows nothing about how a layer is built (blocks.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coterie.core.errors import UnsupportedError
from coterie.models.fields import Fields

COUNT, TAKEN = "num_experts", "num_experts_per_tok"
RUN_KEYS = (COUNT, "num_local_experts", "moe_intermediate_size")  # refused where a family has no branches
MAX_BRANCHES = 4096  # more than any model has; a damaged number must not build a graph without end


@dataclass(frozen=True, slots=True)
class BranchNames:
    """Tensors of a layer's branches behind its prefix, `branch` with a number; without `.weight`.

    `stacked`: a stored tensor [E, rows, columns] -> the matrices of each branch whose rows follow one another in it.
    `also`: other names of the chooser.
    """

    chooser: str = "mlp.gate"
    branch: str = "mlp.experts.{}."
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    stacked: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("mlp.experts.gate_up_proj", ("gate_proj", "up_proj")),
        ("mlp.experts.down_proj", ("down_proj",)),
    )
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BranchKeys:
    """Where a family's config says what, and what is meant where a key is left out.

    `normalises` None: as `norm_topk_prob` says. `by_layer`: some layers may have a plain block, as
    `decoder_sparse_step` and `mlp_only_layers` say.
    """

    count: int
    taken: int
    width_key: str = "intermediate_size"
    width: int | None = None
    normalises: bool | None = None
    by_layer: bool = False
    names: BranchNames = field(default_factory=BranchNames)


@dataclass(frozen=True, slots=True)
class Branches:
    """The branches of a decoder, in the `layers` that have them; `normalised`: weights of those taken sum to 1."""

    count: int
    taken: int
    intermediate_size: int
    normalised: bool
    layers: frozenset[int]
    names: BranchNames


def branches_of(config: Fields, keys: BranchKeys, num_layers: int) -> Branches:
    """What a config says of its branches. Raises CheckpointError, UnsupportedError."""
    count, taken = config.count(COUNT, keys.count), config.count(TAKEN, keys.taken)
    if count > MAX_BRANCHES:
        raise config.wrong(COUNT, f"is {count}", f"at most {MAX_BRANCHES}")
    if taken > count:
        raise config.wrong(TAKEN, f"is {taken}", f"at most the {count} branches that a layer has")
    return Branches(
        count=count,
        taken=taken,
        intermediate_size=config.count(keys.width_key, keys.width),
        normalised=config.flag("norm_topk_prob") if keys.normalises is None else keys.normalises,
        layers=_layers(config, num_layers) if keys.by_layer else frozenset(range(num_layers)),
        names=keys.names,
    )


def _layers(config: Fields, num_layers: int) -> frozenset[int]:
    """Every `decoder_sparse_step`-th layer, but for those in `mlp_only_layers`."""
    step, plain = config.count("decoder_sparse_step", 1), config.get("mlp_only_layers", [])
    if not isinstance(plain, list) or any(type(layer) is not int for layer in plain):
        raise config.wrong("mlp_only_layers", f"is {plain!r}", "a list of numbers of layers")
    layers = frozenset(layer for layer in range(num_layers) if (layer + 1) % step == 0 and layer not in plain)
    if not layers:
        fact = f"none of the {num_layers} layers has branches (decoder_sparse_step {step}, mlp_only_layers {plain})"
        raise UnsupportedError(config.where, fact, "use the family without them")
    return layers
