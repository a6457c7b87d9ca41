"""Layers with branches (mixture of experts inside a model): their number and width, and which ones a token takes.

Terms: in this project an expert is a whole model and a router chooses among experts. So the experts of a mixture inside
a model are called branches, and the gate that chooses among them the chooser. A branch that all tokens take is shared.
Knows nothing about how a layer is built (blocks.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from coterie.core.errors import UnsupportedError
from coterie.models.choice import Choice, ChoiceKeys, choice_of
from coterie.models.fields import Fields

COUNT, TAKEN = "num_experts", "num_experts_per_tok"
CLIP, CLIP_ALPHA = "swiglu_limit", "swiglu_alpha"
RUN_KEYS = (COUNT, "num_local_experts", "moe_intermediate_size")  # refused for families without branches
MAX_BRANCHES = 4096  # more than any model has; a corrupt number must not build an endless graph


@dataclass(frozen=True, slots=True)
class BranchNames:
    """Tensor names after a layer's prefix, without `.weight`; `branch` is formatted with a branch's number.

    `bias`: added to scores for the choice only; its full name. `shared`: gate, up and down of the shared branch, and
    `shared_chooser`: its gate. `stacked`: stored tensor [E, rows, columns] -> the matrices of each branch, whose rows
    follow one another in it. `aliases`: (full name, alternative name in files). `factors`: a learned factor of each
    branch's weight. The biases of all branches [E, rows] are given by their full names.
    `transposed`: stored tensors in which branches' matrices are not contiguous rows, so that a new folder must be
    written (transposed.py).
    """

    chooser: str = "mlp.gate"
    branch: str = "mlp.experts.{}."
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    bias: str = "mlp.gate.e_score_correction_bias"
    shared: tuple[str, str, str] = (
        "mlp.shared_experts.gate_proj",
        "mlp.shared_experts.up_proj",
        "mlp.shared_experts.down_proj",
    )
    shared_chooser: str = ""
    stacked: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("mlp.experts.gate_up_proj", ("gate_proj", "up_proj")),
        ("mlp.experts.down_proj", ("down_proj",)),
    )
    aliases: tuple[tuple[str, str], ...] = ()
    gate_bias: str = "mlp.experts.gate_proj_bias"
    up_bias: str = "mlp.experts.up_proj_bias"
    down_bias: str = "mlp.experts.down_proj_bias"
    factors: str = ""
    transposed: tuple[str, ...] = ()

    @property
    def choosers(self) -> tuple[str, ...]:
        """Full names of the tensors that choose and weigh branches."""
        found = tuple(filter(None, (f"{self.chooser}.weight", self.bias, self.factors)))
        return (*found, f"{self.shared_chooser}.weight") if self.shared_chooser else found


class Plain(Enum):
    """Which layers have a plain block instead of branches; the values name the config keys."""

    NEVER = "none"
    BY_STEP = "those in mlp_only_layers, and all but each decoder_sparse_step-th"
    FIRST = "the first_k_dense_replace first"
    BY_TYPES = "those that mlp_layer_types calls dense, or the first_k_dense_replace first"
    OUTSIDE = "all but each moe_layer_interval-th from moe_layer_start_index to moe_layer_end_index"


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """Config keys for the width of the shared branch, and their default; 0: there may be none.

    `count_key`: the width is given as a multiple of the other branches' width.
    """

    width_key: str = ""
    count_key: str = ""
    default: int | None = None


@dataclass(frozen=True, slots=True)
class BranchKeys:
    """A family's config keys for branches, and their defaults. `first`: default number of plain layers (Plain.FIRST).

    `clipped`: default alpha and limit of clipped gates; None for no such gates. `flag`: config key for whether there
    are branches at all. `may_be_zero`: a count of 0 means that there are none.
    """

    count: int | None
    taken: int | None
    width_key: str = "intermediate_size"
    width: int | None = None
    choice: ChoiceKeys = field(default_factory=ChoiceKeys)
    plain: Plain = Plain.NEVER
    first: int = 1
    shared: SharedKeys | None = None
    clipped: tuple[float, float] | None = None
    flag: str = ""
    may_be_zero: bool = False
    names: BranchNames = field(default_factory=BranchNames)


@dataclass(frozen=True, slots=True)
class Branches:
    """The branches of a decoder, in the `layers` that have them; `shared`: width of the shared branch, 0 for none.

    `clipped`: alpha and limit of clipped gates; branches and chooser then have biases as well.
    """

    count: int
    taken: int
    intermediate_size: int
    choice: Choice
    layers: frozenset[int]
    names: BranchNames
    shared: int = 0
    clipped: tuple[float, float] | None = None

    @property
    def shared_alone(self) -> Branches:
        """The shared branch, with a sigmoid gate, as a choice of one branch out of one."""
        gate, up, down = self.names.shared
        names = replace(self.names, chooser=self.names.shared_chooser, branch="", gate=gate, up=up, down=down)
        return Branches(1, 1, self.shared, Choice(sigmoid=True), self.layers, names)


def branches_of(config: Fields, keys: BranchKeys | None, num_layers: int) -> Branches | None:
    """The branches of a config; None without any. Raises CheckpointError, UnsupportedError."""
    if keys is None or (keys.flag and not config.flag(keys.flag)) or (keys.may_be_zero and config.get(COUNT) == 0):
        return None
    count, taken = config.count(COUNT, keys.count), _taken(config, keys)
    if count > MAX_BRANCHES:
        raise config.wrong(COUNT, f"is {count}", f"at most {MAX_BRANCHES}")
    if taken > count:
        raise config.wrong(TAKEN, f"is {taken}", f"at most the {count} branches that a layer has")
    width = config.count(keys.width_key, keys.width)
    return Branches(
        count=count,
        taken=taken,
        intermediate_size=width,
        choice=choice_of(config, keys.choice, count, taken),
        layers=_layers(config, keys, num_layers),
        names=keys.names,
        shared=_shared(config, keys.shared, width) if keys.shared else 0,
        clipped=keys.clipped and (config.number(CLIP_ALPHA, keys.clipped[0]), config.number(CLIP, keys.clipped[1])),
    )


def _taken(config: Fields, keys: BranchKeys) -> int:
    """How many branches a token takes; a config with a number per layer must have the same one everywhere."""
    said = config.get(TAKEN, keys.taken)
    if not isinstance(said, list) or not said:
        return config.count(TAKEN, keys.taken)
    if any(one != said[0] for one in said):
        fact = f"{TAKEN} is {said!r}: layers of which tokens take different numbers of branches are not supported"
        raise UnsupportedError(config.where, fact, "use a model where all layers take as many")
    return Fields({TAKEN: said[0]}, config.where).count(TAKEN)


def _shared(config: Fields, keys: SharedKeys, width: int) -> int:
    if keys.width_key:
        return config.whole(keys.width_key, keys.default)
    return width * config.whole(keys.count_key, keys.default)


def _layers(config: Fields, keys: BranchKeys, num_layers: int) -> frozenset[int]:
    """The layers with branches. Raises UnsupportedError if there are none."""
    which = {
        Plain.BY_STEP: _by_step,
        Plain.FIRST: _after_first,
        Plain.BY_TYPES: _by_types,
        Plain.OUTSIDE: _within,
    }.get(keys.plain)
    found = which(config, keys, num_layers) if which else range(num_layers)
    layers = frozenset(found)
    if not layers:
        fact = f"none of the {num_layers} layers has branches: plain are {keys.plain.value}"
        raise UnsupportedError(config.where, fact, "use the family without them")
    return layers


def _by_step(config: Fields, keys: BranchKeys, num_layers: int) -> list[int]:
    step, plain = config.count("decoder_sparse_step", 1), config.layer_numbers("mlp_only_layers")
    return [layer for layer in range(num_layers) if (layer + 1) % step == 0 and layer not in plain]


def _after_first(config: Fields, keys: BranchKeys, num_layers: int) -> range:
    return range(config.whole("first_k_dense_replace", keys.first), num_layers)


def _by_types(config: Fields, keys: BranchKeys, num_layers: int) -> Iterable[int]:
    if config.get("mlp_layer_types") is None:
        return _after_first(config, keys, num_layers)
    types = config.layer_kinds("mlp_layer_types", num_layers, ("dense", "sparse"))
    return [layer for layer, one in enumerate(types) if one == "sparse"]


def _within(config: Fields, keys: BranchKeys, num_layers: int) -> list[int]:
    first, every = config.whole("moe_layer_start_index", keys.first), config.count("moe_layer_interval", 1)
    last = config.get("moe_layer_end_index", -1)
    last = num_layers - 1 if last == -1 else config.whole("moe_layer_end_index", None)
    return [layer for layer in range(first, min(last + 1, num_layers)) if (layer + 1) % every == 0]
