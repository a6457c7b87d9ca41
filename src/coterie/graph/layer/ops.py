"""The ops of what each layer has by itself: its own input of each token, and one number that its output is times.

Source: Gemma 4's per-layer embeddings and layer scalars, as Hugging Face transformers computes them.
Knows nothing about which families have them.
"""

from __future__ import annotations

from coterie.graph.opspec import OpSpec

MUL_PART, MUL_ONE = "mul_part", "mul_one"
PART = "part"  # which layer's input it is

LAYER_OPS: dict[str, OpSpec] = {
    MUL_PART: OpSpec("y = a * b[:, part]", ("a:TC", "b:THC"), ("y:TC",), (PART,)),
    MUL_ONE: OpSpec("y = x * weight, one number", ("x:T*", "weight:1"), ("y:T*",)),
}
