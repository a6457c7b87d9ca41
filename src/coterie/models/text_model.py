"""The tensors of a language model that is part of a larger model, under its standalone names.

    language_model.model.layers.3 ... ,  or  model.language_model.layers.3 ...    -> model.layers.3 ...
    vision_tower ... , multi_modal_projector ... , visual ...                        are never read

Knows nothing about what either part computes.
"""

from __future__ import annotations

import re
from dataclasses import replace

from coterie.checkpoint.folder import CONFIG, Checkpoint
from coterie.checkpoint.safetensors import TensorInfo
from coterie.models.blocks import EMBED_WEIGHT, HEAD_WEIGHT
from coterie.models.nested import AUDIO, NESTED, TIED, VISION, part_of, text_config
from coterie.models.tensors import equal_bytes

_PREFIXES = (  # prefixes of the text model's names, in older and newer files
    (re.compile(r"language_model\.(model\.|lm_head\.)"), r"\1"),
    (re.compile(r"model\.language_model\."), "model."),
)
_UNREAD = {
    VISION: re.compile(r"(model\.)?(vision_tower|visual|vision_embedder|embed_vision|multi_modal_projector)\."),
    AUDIO: re.compile(r"(model\.)?(audio_tower|embed_audio)\."),
}


def text_model_of(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as if its text model had been saved alone; that of a plain text model is returned unchanged.

    Embedding and head are tied unless the config denies it, if the file lacks the head, or the config says they are and
    both have the same bytes. Raises CheckpointError and UnsupportedError.
    """
    whole = part_of(checkpoint.config)
    config = dict(text_config(checkpoint.config, str(checkpoint.path / CONFIG)))
    if not whole:
        return replace(checkpoint, config=config)
    unread = [_UNREAD[other] for other in NESTED[whole].unused_parts]
    tensors: dict[str, TensorInfo] = {}
    for name, info in checkpoint.tensors.items():
        if not any(names.match(name) for names in unread):
            own = _own_name(name)
            tensors[own] = replace(info, name=own)
    head, embed = tensors.get(HEAD_WEIGHT), tensors.get(EMBED_WEIGHT)
    if config.get(TIED) is not False and embed is not None:
        config[TIED] = head is None or (bool(config.get(TIED)) and equal_bytes(head, embed))
    return replace(checkpoint, config=config, tensors=tensors)


def _own_name(name: str) -> str:
    """A tensor's name in a file of the standalone text model."""
    for prefix, instead in _PREFIXES:
        if prefix.match(name):
            return prefix.sub(instead, name, count=1)
    return name
