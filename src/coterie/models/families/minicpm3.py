"""MiniCPM3: latent attention in a dense decoder with scaled embeddings, residuals and logits.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family
from coterie.models.latent import LATENT_RUNS, LatentKeys

MINICPM3 = Family(
    model_type="minicpm3",
    causal_class="MiniCPM3ForCausalLM",
    max_positions=32_768,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
    norm_eps=1e-5,
    latent=LatentKeys(query_rank=768, rank=256, rotated=32, plain=64, values=None),
    tied_embeddings=True,
    supported_keys=(*LATENT_RUNS, "embedding_multiplier", "scale_emb", "scale_depth", "dim_model_base"),
    keys={"embedding_multiplier": "scale_emb"},
    mandatory_keys=("scale_emb", "scale_depth", "dim_model_base"),
)
