"""A CLIP vision tower and LLaVA's projector as ops: patches of one image per sequence become rows of its text.

Knows nothing about the text model. Only modelled machines run it: its ops have no kernels on real devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Shape, Times, trailing
from coterie.graph.ir import Attr, GraphBuilder, Kind
from coterie.models.fields import Fields

FORMS = {"quick_gelu": "sigmoid", "gelu": "erf"}  # names of Hugging Face -> forms of the op gelu
TOWER, PROJECTOR = "vision_tower.vision_model.", "multi_modal_projector."


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Sizes of the tower and the projector. `num_layers`: layers up to the one whose output is used."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_patches: int
    patch_values: int
    norm_eps: float
    form: str
    projector_form: str
    out_size: int

    @staticmethod
    def from_hf(raw: Mapping[str, object], where: str, out_size: int) -> VisionConfig:
        """Translate a LLaVA config; `out_size` is the text model's hidden size.

        Raises CheckpointError for a key that is missing or wrong, UnsupportedError naming what is not modelled.
        """
        whole = Fields(raw, where)
        vision = whole.section("vision_config")
        if vision is None or vision.get("model_type") != "clip_vision_model":
            raise UnsupportedError(where, "its vision_config is no clip_vision_model", "use a LLaVA 1.5 config")
        layer, layers = whole.get("vision_feature_layer", -2), vision.count("num_hidden_layers")
        if not isinstance(layer, int) or not -layers <= layer < 0:
            raise whole.wrong("vision_feature_layer", f"is {layer!r}", f"from -{layers} to -1")
        if whole.get("vision_feature_select_strategy", "default") != "default":
            raise UnsupportedError(where, "its class row is kept", "use vision_feature_select_strategy default")
        image, patch = vision.count("image_size"), vision.count("patch_size")
        return VisionConfig(
            hidden_size=vision.count("hidden_size"),
            intermediate_size=vision.count("intermediate_size"),
            num_layers=layers + 1 + layer,
            num_heads=vision.count("num_attention_heads"),
            num_patches=(image // patch) ** 2,
            patch_values=vision.count("num_channels", 3) * patch * patch,
            norm_eps=vision.number("layer_norm_eps", 1e-5),
            form=_form(vision, "hidden_act", "quick_gelu"),
            projector_form=_form(whole, "projector_hidden_act", "gelu"),
            out_size=out_size,
        )


def _form(config: Fields, key: str, default: str) -> str:
    name = config.get(key, default)
    if name not in FORMS:
        raise UnsupportedError(config.where, f"{key} {name!r} is not supported", f"use one of {', '.join(FORMS)}")
    return FORMS[name]


@dataclass(frozen=True, slots=True)
class VisionTower:
    """Appends the tower to a graph; `dtypes` has the element type of each weight."""

    config: VisionConfig
    dtypes: Mapping[str, DType]
    builder: GraphBuilder
    activations: DType

    def build(self) -> str:
        """From the input `patches` to rows of the text model: [patches of each sequence, its hidden size]."""
        c, b = self.config, self.builder
        b.stage = "vision.embed"
        b.value("patches", (Times(c.num_patches), c.patch_values), self.activations, Kind.INPUT)
        rows: Shape = (Times(c.num_patches), c.hidden_size)
        whole: Shape = (Times(c.num_patches + 1), c.hidden_size)
        embeddings = TOWER + "embeddings."
        x = self._linear("patch", "patches", embeddings + "patch_embedding", rows, bias=False)
        row = self._weight(embeddings + "class_embedding", (c.hidden_size,))
        x = self._op("first_row", "class", (x, row), whole, group=c.num_patches)
        table = self._weight(embeddings + "position_embedding.weight", (c.num_patches + 1, c.hidden_size))
        x = self._op("add_table", "position", (x, table), whole)
        x = self._norm("norm", x, TOWER + "pre_layrnorm")  # sic
        for layer in range(c.num_layers):
            b.stage = f"vision.layers.{layer}"
            x = self._layer(x, f"{TOWER}encoder.layers.{layer}.")
        b.stage = "vision.project"
        x = self._op("drop_first", "patches", (x,), rows, group=c.num_patches + 1)
        out: Shape = (Times(c.num_patches), c.out_size)
        x = self._linear("in", x, PROJECTOR + "linear_1", out)
        x = self._op("gelu", "gelu", (x,), out, form=c.projector_form)
        return self._linear("out", x, PROJECTOR + "linear_2", out)

    def _layer(self, x: str, prefix: str) -> str:
        c = self.config
        heads: Shape = (Times(c.num_patches + 1), c.num_heads, c.hidden_size // c.num_heads)
        attn, mlp, rows = prefix + "self_attn.", prefix + "mlp.", self.builder.shape(x)
        h = self._norm("input_norm", x, prefix + "layer_norm1")
        q, k, v = (self._linear(name, h, f"{attn}{name}_proj", heads) for name in "qkv")
        scale = (c.hidden_size // c.num_heads) ** -0.5
        y = self._op("group_attention", "attention", (q, k, v), heads, group=c.num_patches + 1, scale=scale)
        x = self._op("add", "attention_out", (x, self._linear("o", y, attn + "out_proj", rows)), rows)
        h = self._norm("post_norm", x, prefix + "layer_norm2")
        inner: Shape = (rows[0], c.intermediate_size)
        up = self._linear("up", h, mlp + "fc1", inner)
        wide = self._op("gelu", "gelu", (up,), inner, form=c.form)
        return self._op("add", "out", (x, self._linear("down", wide, mlp + "fc2", rows)), rows)

    def _op(self, kind: str, name: str, inputs: tuple[str, ...], shape: Shape, **attrs: Attr) -> str:
        b = self.builder
        y = b.value(f"{b.stage}/{name}", shape, self.activations, Kind.TENSOR)
        b.op(kind, name, inputs, (y,), **attrs)
        return y

    def _norm(self, name: str, x: str, prefix: str) -> str:
        shape = self.builder.shape(x)
        weights = (self._weight(f"{prefix}.{part}", shape[-1:]) for part in ("weight", "bias"))
        return self._op("layer_norm", name, (x, *weights), shape, eps=self.config.norm_eps)

    def _linear(self, name: str, x: str, prefix: str, shape: Shape, bias: bool = True) -> str:
        rows, columns = trailing(shape), trailing(self.builder.shape(x))
        weight = self._weight(prefix + ".weight", (rows, columns))
        return self._op("linear", name, (x, weight, self._weight(prefix + ".bias", (rows,)) if bias else ""), shape)

    def _weight(self, name: str, shape: Shape) -> str:
        return self.builder.value(name, shape, self.dtypes[name], Kind.WEIGHT)
