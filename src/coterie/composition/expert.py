"""Expert: one model of a composition, by name, and the rule that its name must follow.

Knows nothing about what is inside the checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from coterie.core.sampling import NOTHING_SAID, PartialSampling

NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # safe in `@name`, in a URL path and as a model id
NAME_RULE = "use letters, digits, dot, dash and underscore, 64 at most, beginning with a letter or a digit"
_NAME = re.compile(NAME_PATTERN)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Expert:
    """One model. `checkpoint` is a Hugging Face folder; an expert without bytes has `config` instead.

    `config` is the path of a config.json or the name of a known shape. Exactly one of the two is given. Where the
    checkpoint is a LoRA adapter's folder, `base` is that of the model to which it belongs. `sampling`: how its tokens
    are drawn where a request does not say; this goes before what its checkpoint says. `draft`: the name of the expert
    that guesses for it.

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
    packed: str = ""
    rank: int = 0
    delta: str = ""


def safe_name(text: str) -> str:
    """A text with hyphens for what a name may not have; empty where nothing is left, and perhaps still too long."""
    return _UNSAFE.sub("-", text).strip("-._")


def is_expert_name(text: str) -> bool:
    """Whether `text` can name an expert: letters, digits, dot, dash and underscore, 64 at most, no leading mark."""
    return _NAME.fullmatch(text) is not None
