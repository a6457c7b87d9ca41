"""LLaVA 1.5: a CLIP vision tower and a projector in front of Llama, with one image per sequence.

Knows nothing about how either is built (vision.py, blocks.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.graph.ir import Graph, GraphBuilder
from coterie.models.blocks import Decoder
from coterie.models.config import ModelConfig
from coterie.models.family import NAMES
from coterie.models.fields import Fields
from coterie.models.vision import VisionConfig, VisionTower

MODEL_TYPE = "llava"
PREFIX = "language_model."
TEXT_NAMES = replace(
    NAMES,
    embed=PREFIX + NAMES.embed,
    layer=PREFIX + NAMES.layer,
    norm=PREFIX + NAMES.norm,
    head=PREFIX + NAMES.head,
)


def llava_graph(raw: Mapping[str, Any], where: str, dtypes: Mapping[str, DType], activations: DType) -> Graph:
    """A step with new images: the tower runs, and its rows replace the image tokens of the prompt.

    Raises CheckpointError and UnsupportedError.
    """
    builder, text = GraphBuilder(MODEL_TYPE), _text(raw, where)
    vision = VisionConfig.from_hf(raw, where, text.hidden_size)
    images = VisionTower(vision, dtypes, builder, activations).build()
    return Decoder(text, dtypes, builder, activations).build(images, Fields(raw, where).count("image_token_index"))


def llava_text_graph(raw: Mapping[str, Any], where: str, dtypes: Mapping[str, DType], activations: DType) -> Graph:
    """A step without new images: the text model alone, as in every decode step."""
    return Decoder(_text(raw, where), dtypes, GraphBuilder(MODEL_TYPE), activations).build()


def _text(raw: Mapping[str, Any], where: str) -> ModelConfig:
    config = Fields(raw, where)
    text = config.section("text_config")
    if text is None:
        raise config.wrong("text_config", "is missing", "the config of the text model")
    found = ModelConfig.from_hf(text.raw, text.where)
    if found.layered:
        fact = f"{found.family} has inputs of its layers for each token, and for images none are known"
        raise UnsupportedError(text.where, fact, "name the text model's own config, or use a LLaVA 1.5 config")
    return replace(found, names=TEXT_NAMES)
