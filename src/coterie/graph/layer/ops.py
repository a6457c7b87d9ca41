"""The ops of per-layer inputs and scalars: a layer's own input for each token, and a number that scales its output.

Source: Gemma 4's per-layer embeddings and layer scalars, as Hugging Face transformers computes them.
Knows nothing about which families have them.
"""

from __future__ import annotations

from coterie.graph.opspec import OpSpec

MUL_PART, MUL_ONE = "mul_part", "mul_one"
PART = "part"  # index of the layer whose input it is

LAYER_OPS: dict[str, OpSpec] = {
    MUL_PART: OpSpec("y = a * b[:, part]", ("a:TC", "b:THC"), ("y:TC",), (PART,)),
    MUL_ONE: OpSpec("y = x * weight, a scalar", ("x:T*", "weight:1"), ("y:T*",)),
}
