"""Expert: one model of a composition, by name, and the rule that its name must follow.

Knows nothing about what is inside the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie.core.errors import CompositionError
from coterie.core.sampling import NOTHING_SAID, PartialSampling
from coterie.core.text import safe_name

MAX_LETTERS = 64
NAME_PATTERN = f"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_LETTERS - 1}}}"  # safe in `@name`, in a URL path and as a model id
NAME_RULE = "use letters, digits, dot, dash and underscore, 64 at most, beginning with a letter or a digit"
# What clients call models elsewhere: ORG/MODEL:TAG. The last letter is none that ends an address, as in "@name: ...".
ALIAS_PATTERN = "[A-Za-z0-9](?:[A-Za-z0-9._/:-]{0,126}[A-Za-z0-9._-])?"
ALIAS_RULE = "letters, digits, dot, dash, underscore, and inside / and :, 128 at most, beginning as a name does"
_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Expert:
    """One model. `checkpoint` is a Hugging Face folder; an expert without bytes has `config` instead.

    `config` is the path of a config.json or the name of a known shape. Exactly one of the two is given. Where the
    checkpoint is a LoRA adapter's folder, `base` is that of the model to which it belongs. `sampling`: how its tokens
    are drawn where a request does not say; this goes before what its checkpoint says. `draft`: the name of its
    draft expert. `aliases`: other names by which it is asked.

    What an expert without bytes is besides its config: `packed`, the type of its weights, as `coterie quantize` names
    it; beside the config's model, which all such experts share, an adapter of a `rank` or a `delta` of this type.
    """

    name: str
    checkpoint: Path | None = None
    config: str | None = None
    description: str = ""
    base: Path | None = None
    sampling: PartialSampling = NOTHING_SAID
    draft: str = ""
    aliases: tuple[str, ...] = ()
    packed: str = ""
    rank: int = 0
    delta: str = ""


def owners_of(experts: Sequence[Expert], whole: str, file: str) -> dict[str, str]:
    """Whose each alias is, by name.

    Raises CompositionError where an alias is one of two experts', an expert's name too, or that of the `whole`.
    """
    taken = {expert.name: f"the name of the expert {expert.name}" for expert in experts}
    taken[whole] = "the name of the composition"
    owners = dict[str, str]()
    for expert in experts:
        for alias in expert.aliases:
            if alias in taken:
                fact = f"the alias {alias!r} is also {taken[alias]}"
                raise CompositionError(f"{file}: expert {expert.name!r}.aliases", fact, "give each name once")
            taken[alias] = f"an alias of {expert.name}"
            owners[alias] = expert.name
    return owners


def is_expert_name(text: str) -> bool:
    """Whether `text` can name an expert: letters, digits, dot, dash and underscore, 64 at most, no leading mark."""
    return _NAME.fullmatch(text) is not None


def expert_name(text: str) -> str:
    """What an expert is called whose folder or file has this name: the same, or what of it a name may have."""
    return text if is_expert_name(text) else safe_name(text)[:MAX_LETTERS]
