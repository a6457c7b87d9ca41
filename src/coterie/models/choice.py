"""How a token's branches are chosen and weighed, as the config says.

Knows nothing about which family chooses how, or how a choice is computed (graph/branch/ops.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.graph.branch.ops import ADDED_SUM, GROUP_BEST, GROUPS, MIN_SUM, SCORES, SIGMOID, TAKEN_GROUPS
from coterie.graph.ir import Attr
from coterie.models.fields import Fields

METHOD = "topk_method"
NORMALISES, FACTOR, GROUP_COUNT, GROUPS_TAKEN = "norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group"
# Values that released configs have for sigmoid scores ranked with a bias.
_SAID = {"scoring_func": ("sigmoid", "noaux_tc"), METHOD: ("noaux_tc",)}
GROUPED_RUNS = (FACTOR, GROUP_COUNT, *_SAID)  # keys supported by families with such scores and groups


@dataclass(frozen=True, slots=True)
class ChoiceKeys:
    """A family's way to choose, and the defaults of config keys.

    `normalises` None: as `norm_topk_prob` says, by default `normalises_unsaid`. `scales`: weights are multiplied by
    `routed_scaling_factor`, by default `scale_unsaid`. `group_best`: there are `n_group` groups, each ranked by the sum
    of this many best scores; with `groups_by_method` only if `topk_method` says so. `min_sum_key`: config key for
    `min_sum`. `by_width`: logits are divided by sqrt(hidden_size). `factors`: each branch's weight is multiplied by a
    learned number.
    """

    normalises: bool | None = None
    normalises_unsaid: bool = False
    sigmoid: bool = False
    biased: bool = False
    scales: bool = False
    scale_unsaid: float = 1.0
    group_best: int = 0
    groups_by_method: bool = False
    min_sum: float = 0.0
    min_sum_key: str = ""
    by_width: bool = False
    factors: bool = False
    added_sum: float = 0.0


# Of DeepSeek V3 and families that choose in the same way.
BIASED_SIGMOID = ChoiceKeys(sigmoid=True, biased=True, scales=True, group_best=2, added_sum=1e-20)


@dataclass(frozen=True, slots=True)
class Choice:
    """How a token's branches are chosen and weighed, in the terms of the op choose_branches."""

    normalised: bool = False
    sigmoid: bool = False
    biased: bool = False
    scale: float = 1.0
    min_sum: float = 0.0
    groups: int = 0
    taken_groups: int = 0
    group_best: int = 0
    logits_scale: float = 1.0
    factors: bool = False
    added_sum: float = 0.0

    def attrs(self) -> dict[str, Attr]:
        """Attributes of the op, without its scale and without those that would have no effect."""
        attrs: dict[str, Attr] = {"normalise": int(self.normalised)}
        attrs |= {SCORES: SIGMOID} if self.sigmoid else {}
        attrs |= {MIN_SUM: self.min_sum} if self.min_sum else {}
        attrs |= {ADDED_SUM: self.added_sum} if self.added_sum and self.normalised else {}
        if self.groups:
            attrs |= {GROUPS: self.groups, TAKEN_GROUPS: self.taken_groups, GROUP_BEST: self.group_best}
        return attrs


def choice_of(config: Fields, keys: ChoiceKeys, count: int, taken: int) -> Choice:
    """How a config chooses `taken` of `count` branches. Raises CheckpointError."""
    for key, known in _SAID.items() if keys.sigmoid else ():
        if config.get(key, known[0]) not in known:
            raise config.wrong(key, f"is {config.get(key)!r}", " or ".join(known))
    groups, taken_groups = _groups(config, keys, count, taken)
    return Choice(
        normalised=config.flag(NORMALISES, keys.normalises_unsaid) if keys.normalises is None else keys.normalises,
        sigmoid=keys.sigmoid,
        biased=keys.biased,
        scale=config.number(FACTOR, keys.scale_unsaid) if keys.scales else 1.0,
        min_sum=config.number(keys.min_sum_key, keys.min_sum) if keys.min_sum_key else keys.min_sum,
        added_sum=keys.added_sum,
        groups=groups,
        taken_groups=taken_groups,
        group_best=keys.group_best if groups else 0,
        logits_scale=config.count("hidden_size") ** -0.5 if keys.by_width else 1.0,
        factors=keys.factors,
    )


def _groups(config: Fields, keys: ChoiceKeys, count: int, taken: int) -> tuple[int, int]:
    """Number of groups, and how many of them a token may use; (0, 0) if it may use all."""
    if not keys.group_best or (keys.groups_by_method and not _limited(config)):
        return 0, 0
    groups, taken_groups = config.count(GROUP_COUNT, 1), config.count(GROUPS_TAKEN, 1)
    if count % groups or count // groups < keys.group_best:
        wanted = f"a divisor of the {count} branches that leaves a group at least {keys.group_best}"
        raise config.wrong(GROUP_COUNT, f"is {groups}", wanted)
    if taken_groups > groups or taken_groups * (count // groups) < taken:
        wanted = f"at most the {groups} groups, and enough for {taken} branches of {count // groups} in a group"
        raise config.wrong(GROUPS_TAKEN, f"is {taken_groups}", wanted)
    return (0, 0) if taken_groups == groups else (groups, taken_groups)


def _limited(config: Fields) -> bool:
    """Whether tokens use only the best groups, by DeepSeek V2's key. Raises CheckpointError."""
    method = config.get(METHOD, "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise config.wrong(METHOD, f"is {method!r}", "greedy or group_limited_greedy")
    return bool(method == "group_limited_greedy")
