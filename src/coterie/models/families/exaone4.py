"""EXAONE 4: norms after the blocks, none before, and per-head q and k norms; layers without a window have no rope.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.families.olmo2 import OLMO2_NAMES
from coterie.models.family import Family, Window

EXAONE4 = Family(
    model_type="exaone4",
    causal_class="Exaone4ForCausalLM",
    max_positions=2048,
    num_kv_heads=32,
    qk_norm=True,
    norm_eps=1e-5,
    window=Window.BY_PATTERN,
    window_pattern=4,
    pattern_key="sliding_window_pattern",
    full_layers_rotate=False,
    names=OLMO2_NAMES,
)
