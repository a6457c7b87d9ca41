"""Expert: one named model of a composition, and the rules for its name and aliases.

Knows nothing about what is inside the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie.core.errors import CompositionError
from coterie.core.sampling import UNSET, PartialSampling
from coterie.core.text import safe_name

MAX_LETTERS = 64
NAME_PATTERN = f"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_LETTERS - 1}}}"  # safe in `@name`, in a URL path and as a model id
NAME_RULE = "use letters, digits, dot, dash and underscore, 64 at most, beginning with a letter or a digit"
# Covers ids that clients use elsewhere, such as ORG/MODEL:TAG. The last character cannot be a colon, which would be
# ambiguous in "@name: ...".
ALIAS_PATTERN = "[A-Za-z0-9](?:[A-Za-z0-9._/:-]{0,126}[A-Za-z0-9._-])?"
ALIAS_RULE = "letters, digits, dot, dash, underscore, and inside / and :, 128 at most, beginning as a name does"
_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Expert:
    """One model. `checkpoint` is a Hugging Face folder; an expert without weights has `config` instead.

    `config` is the path of a config.json or the name of a known shape. Exactly one of the two is given. If the
    checkpoint is a LoRA adapter or a delta, `base` is the folder of the model that it applies to. `sampling`: defaults
    for requests that do not set them; they override the checkpoint's own. `draft`: the expert that drafts tokens for
    it in speculative decoding. `aliases`: other names that requests may use for it.

    Further properties of an expert without weights: `packed`, the type of its weights, named as by `coterie quantize`;
    `rank` makes it a LoRA adapter of that rank on the config's model, `delta` a delta stored in that type. All such
    experts of one config share the base model.
    """

    name: str
    checkpoint: Path | None = None
    config: str | None = None
    description: str = ""
    base: Path | None = None
    sampling: PartialSampling = UNSET
    draft: str = ""
    aliases: tuple[str, ...] = ()
    packed: str = ""
    rank: int = 0
    delta: str = ""


def owners_of(experts: Sequence[Expert], whole: str, file: str) -> dict[str, str]:
    """The experts' names by alias.

    Raises CompositionError for an alias that two experts share, or that is also the name of an expert or of the
    composition, `whole`.
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
    """Whether `text` can name an expert: at most 64 letters, digits, `.`, `-` and `_`; the first a letter or digit."""
    return _NAME.fullmatch(text) is not None


def expert_name(text: str) -> str:
    """The name of the expert in a folder or file of this name; made a valid name if need be."""
    return text if is_expert_name(text) else safe_name(text)[:MAX_LETTERS]
