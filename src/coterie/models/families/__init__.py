"""The supported model families, a row each, and the choice of one by config.

Knows nothing about numbers or graphs.
"""

from __future__ import annotations

from coterie.core.errors import UnsupportedError
from coterie.models.families.afmoe import AFMOE
from coterie.models.families.apertus import APERTUS
from coterie.models.families.arcee import ARCEE
from coterie.models.families.bamba import BAMBA
from coterie.models.families.bert import BERT, GTE, JINA_BERT, JINA_V3, MPNET, NOMIC_BERT, ROBERTA, XLM_ROBERTA
from coterie.models.families.bloom import BLOOM
from coterie.models.families.cohere import COHERE, COHERE2
from coterie.models.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE_LITE, YOUTU
from coterie.models.families.dots1 import DOTS1
from coterie.models.families.ernie import ERNIE4_5
from coterie.models.families.ernie_moe import ERNIE4_5_MOE
from coterie.models.families.exaone4 import EXAONE4
from coterie.models.families.falcon import FALCON
from coterie.models.families.falcon_h1 import FALCON_H1
from coterie.models.families.gemma import GEMMA, GEMMA2, GEMMA3, VAULT_GEMMA
from coterie.models.families.gemma4 import GEMMA4, GEMMA4_UNIFIED
from coterie.models.families.glm4 import GLM, GLM4
from coterie.models.families.glm4_moe import GLM4_MOE
from coterie.models.families.gpt_oss import GPT_OSS
from coterie.models.families.granite import GRANITE
from coterie.models.families.granitemoe import GRANITE_MOE
from coterie.models.families.granitemoehybrid import GRANITE4
from coterie.models.families.granitemoeshared import GRANITE_MOE_SHARED
from coterie.models.families.helium import HELIUM
from coterie.models.families.hunyuan import HUNYUAN
from coterie.models.families.hunyuan_moe import HUNYUAN_MOE
from coterie.models.families.lfm2 import LFM2, LFM2_MOE
from coterie.models.families.llama import EUROBERT, LLAMA
from coterie.models.families.mamba2 import MAMBA2
from coterie.models.families.minicpm3 import MINICPM3
from coterie.models.families.minimax_m2 import MINIMAX_M2
from coterie.models.families.mistral import MINISTRAL, MINISTRAL3, MISTRAL
from coterie.models.families.mixtral import MIXTRAL
from coterie.models.families.modernbert import MODERNBERT
from coterie.models.families.nemotron_h import NEMOTRON_H
from coterie.models.families.olmo2 import OLMO2, OLMO3
from coterie.models.families.olmoe import OLMOE
from coterie.models.families.opt import OPT
from coterie.models.families.phi import PHI
from coterie.models.families.phi3 import PHI3
from coterie.models.families.qwen2 import QWEN2
from coterie.models.families.qwen2_moe import QWEN2_MOE
from coterie.models.families.qwen3 import QWEN3
from coterie.models.families.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from coterie.models.families.qwen3_moe import QWEN3_MOE
from coterie.models.families.qwen3_next import QWEN3_NEXT
from coterie.models.families.seed_oss import SEED_OSS
from coterie.models.families.smollm3 import SMOLLM3
from coterie.models.families.solar import SOLAR_OPEN
from coterie.models.families.stablelm import STABLELM
from coterie.models.families.starcoder2 import STARCODER2
from coterie.models.family import Family
from coterie.models.fields import Fields

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(LLAMA, MISTRAL, MINISTRAL, MINISTRAL3, QWEN2, QWEN3, OLMO2, OLMO3, GEMMA, GEMMA2, GEMMA3, VAULT_GEMMA),
        *(PHI3, SMOLLM3, QWEN3_5, LFM2, LFM2_MOE, GEMMA4, GEMMA4_UNIFIED),
        *(GRANITE, GRANITE4, ARCEE, APERTUS, COHERE, COHERE2, SEED_OSS, EXAONE4, ERNIE4_5, GLM, GLM4, HELIUM, HUNYUAN),
        *(STABLELM, STARCODER2, PHI, QWEN3_MOE, MIXTRAL, OLMOE, GRANITE_MOE, GPT_OSS),
        *(QWEN2_MOE, GRANITE_MOE_SHARED, GLM4_MOE, ERNIE4_5_MOE, DOTS1, HUNYUAN_MOE, MINIMAX_M2),
        *(QWEN3_5_MOE, QWEN3_NEXT, DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE_LITE, YOUTU, MINICPM3),
        *(AFMOE, SOLAR_OPEN, BAMBA, FALCON_H1, NEMOTRON_H, MAMBA2),
        *(BERT, ROBERTA, XLM_ROBERTA, MPNET, NOMIC_BERT, JINA_BERT, JINA_V3, GTE, MODERNBERT, EUROBERT),
        *(BLOOM, FALCON, OPT),
    )
}
# Architectures with branches that are chosen or built in an unsupported way.
OTHER_BRANCHES = {
    "phimoe": "its branches are chosen one after the other, each by a softmax of its own",
}


def family_of(config: Fields) -> Family:
    """The family of a config, by `model_type` and, where given, `architectures`. Raises UnsupportedError."""
    model_type = config.get("model_type")
    classes = config.get("architectures", [])
    by_class = next((f.model_type for f in FAMILIES.values() if classes == [f.causal_class]), None)
    family = FAMILIES.get(model_type or by_class or "") if isinstance(model_type, str | None) else None
    if isinstance(model_type, str) and model_type in OTHER_BRANCHES:
        fact = f"architecture {model_type!r} is not supported: {OTHER_BRANCHES[model_type]}"
        with_branches = ", ".join(f.model_type for f in FAMILIES.values() if f.branches)
        raise UnsupportedError(config.where, fact, f"of models with branches Coterie runs {with_branches}")
    if family is None or (classes and classes != [family.causal_class]):
        named = f"{model_type!r}" + (f" with architectures {classes}" if classes else "")
        runs = [f for f in FAMILIES.values() if not f.modelled_only]
        priced = ", ".join(f.model_type for f in FAMILIES.values() if f.modelled_only)
        known = ", ".join(f"{f.model_type} ({f.causal_class})" for f in runs) + f"; {priced} on modelled machines only"
        raise UnsupportedError(config.where, f"architecture {named} is not supported", f"Coterie runs {known}")
    return family
