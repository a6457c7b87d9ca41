"""Tiny random models of every family, rope kind and feature, made on the spot with transformers.

Adding a family: a row in FAMILY_ROWS, or in what is merged into it. Every row is a config class and what differs from
BASE.
"""

import copy
from pathlib import Path

import torch
import transformers
from tests.model.ropes import ROPES
from tests.model.rows_branches import BRANCH_ROWS
from tests.model.rows_own import DELTA_MOE, DELTA_ROWS, FULL, GEMMA4_MOE, GEMMA4_ROWS, LATENT_ROWS, SLIDING
from tests.model.rows_scan import SCAN_MOE, SCAN_ROWS

from coterie.models.quantised.methods import is_repacked
from coterie.models.repack import repack_folder

BASE = {
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 68,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def rope_of(name, pairs):
    """The settings of a rope of so many pairs of channels, of which some kinds have a number for each."""
    rope = dict(ROPES[name])
    if name == "longrope":
        rope["short_factor"] = [1.0 + 0.1 * i for i in range(pairs)]
        rope["long_factor"] = [2.0 + 0.5 * i for i in range(pairs)]
    return rope


FAMILY_ROWS = {
    "llama": ("Llama", {}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}),
    "llama-mqa": ("Llama", {"num_key_value_heads": 1}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "vocab_size": 101}),
    "llama-head20": ("Llama", {"hidden_size": 80, "num_key_value_heads": 1, "head_dim": None}),
    "llama-head24": ("Llama", {"head_dim": 24}),
    "llama-head80": ("Llama", {"head_dim": 80, "num_hidden_layers": 2}),
    "llama-head6": ("Llama", {"head_dim": 6, "vocab_size": 259, "hidden_size": 52, "intermediate_size": 37}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral-full": ("Mistral", {"sliding_window": None, "head_dim": 20}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen2-types": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-bias": ("Qwen3", {"head_dim": 24, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-window": (
        "Qwen3",
        {"head_dim": 10, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
}

FAMILY_ROWS |= {
    "olmo2": ("Olmo2", {}),
    "olmo2-bias": ("Olmo2", {"attention_bias": True, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "phi3": ("Phi3", {"pad_token_id": 0}),
    "phi3-window": ("Phi3", {"pad_token_id": 0, "sliding_window": 7, "num_key_value_heads": 4}),
    "phi3-partial": (
        "Phi3",
        {
            **{"pad_token_id": 0, "hidden_size": 64, "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
            "original_max_position_embeddings": 128,
        },
    ),
    "smollm3": ("SmolLM3", {"pad_token_id": 0, "no_rope_layers": [1, 0, 1]}),
    "smollm3-window": (
        "SmolLM3",
        {
            **{"pad_token_id": 0, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 6},
            "attention_bias": True,
        },
    ),
    "smollm3-none": ("SmolLM3", {"pad_token_id": 0, "no_rope_layers": [0, 0, 0], "mlp_bias": True}),
    "seed-oss": ("SeedOss", {"head_dim": 16}),
    "exaone4": ("Exaone4", {"sliding_window": 6, "sliding_window_pattern": 2}),
    "exaone4-full": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3, "head_dim": 20}),
    "granite": (
        "Granite",
        {
            **{"embedding_multiplier": 3.5, "attention_multiplier": 0.21, "residual_multiplier": 0.6},
            "logits_scaling": 3.0,
        },
    ),
    "granite-biases": (
        "Granite",
        {
            **{"embedding_multiplier": 0.7, "residual_multiplier": 1.3, "attention_multiplier": 0.4},
            **{"logits_scaling": 0.25, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        },
    ),
}

FAMILY_ROWS |= {
    "ernie": ("Ernie4_5", {"head_dim": 10, "use_bias": True, "num_key_value_heads": 1}),
    "glm": (
        "Glm",
        {
            **{"pad_token_id": 0, "head_dim": 16, "partial_rotary_factor": 1.0, "attention_bias": False},
            **{"num_attention_heads": 3, "num_key_value_heads": 1},
        },
    ),
    "glm4": ("Glm4", {"pad_token_id": 0, "head_dim": 12, "partial_rotary_factor": 0.5}),
    "ministral": (
        "Ministral",
        {
            "head_dim": 12,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "ministral3": ("Ministral3", {"head_dim": 20, "pad_token_id": 0}),
    "arcee": ("Arcee", {"mlp_bias": True, "attention_bias": True}),
    "granite4": (
        "GraniteMoeHybrid",
        {
            **{"embedding_multiplier": 3.5, "attention_multiplier": 0.21, "residual_multiplier": 0.6},
            **{"logits_scaling": 3.0, "shared_intermediate_size": 52, "num_local_experts": 0, "mamba_n_heads": 4},
            **{"layer_types": ["full_attention"] * 3, "position_embedding_type": "rope"},
        },
    ),
    "hunyuan": ("HunYuanDenseV1", {"head_dim": 20, "attention_bias": True, "pad_token_id": 0}),
    "helium": ("Helium", {"pad_token_id": 0, "head_dim": 12, "attention_bias": True}),
}

FAMILY_ROWS |= {
    "gemma": ("Gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma-bias": ("Gemma", {"hidden_act": "gelu", "attention_bias": True, "head_dim": 20}),
    "gemma2": (
        "Gemma2",
        {
            **{"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 9},
            **{"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
        },
    ),
    "gemma2-erf": (
        "Gemma2",
        {
            **{"head_dim": 20, "sliding_window": 5, "hidden_activation": "gelu", "attention_bias": True},
            **{"layer_types": [FULL, SLIDING, FULL], "final_logit_softcapping": None, "tie_word_embeddings": False},
        },
    ),
    "gemma3": (
        "Gemma3",
        {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 11, "layer_types": [SLIDING, FULL, SLIDING]},
    ),
    "vaultgemma": ("VaultGemma", {"head_dim": 16, "sliding_window": 7, "attn_logit_softcapping": 1.5}),
    "olmo3": ("Olmo3", {"sliding_window": 6, "layer_types": [SLIDING, FULL, SLIDING]}),
}
FAMILY_ROWS |= BRANCH_ROWS | LATENT_ROWS | DELTA_ROWS | DELTA_MOE | GEMMA4_ROWS | GEMMA4_MOE
FAMILY_ROWS |= SCAN_ROWS | SCAN_MOE
BRANCHED = (
    *(*BRANCH_ROWS, *DELTA_MOE, *GEMMA4_MOE, *SCAN_MOE),
    *(row for row, (_, changes) in LATENT_ROWS.items() if "n_routed_experts" in changes),
)
FAMILY_ROWS |= {
    "stablelm": ("StableLm", {"hidden_size": 64, "partial_rotary_factor": 0.25}),
    "stablelm-parallel": (
        "StableLm",
        {
            **{"use_qkv_bias": True, "use_parallel_residual": True, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
        },
    ),
    "starcoder2": ("Starcoder2", {"sliding_window": 7}),
    "starcoder2-full": ("Starcoder2", {"hidden_act": "gelu", "tie_word_embeddings": False}),
}
FAMILY_ROWS |= {
    "cohere": ("Cohere", {"pad_token_id": 0, "logit_scale": 0.4, "num_key_value_heads": 4}),
    "cohere-bias": ("Cohere", {"pad_token_id": 0, "attention_bias": True, "tie_word_embeddings": False}),
    "cohere2": ("Cohere2", {"pad_token_id": 0, "sliding_window": 7, "sliding_window_pattern": 2, "logit_scale": 0.3}),
    "apertus": ("Apertus", {"num_key_value_heads": 1}),
    "apertus-bias": ("Apertus", {"attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 4}),
}
FAMILY_ROWS |= {
    "phi": ("Phi", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi-gqa": ("Phi", {"hidden_size": 80, "partial_rotary_factor": 0.4, "hidden_act": "gelu"}),
}
TURNED = ("experts.gate_up_proj", "experts.down_proj")  # of gpt-oss, whose columns are rows
PROPORTIONAL = ("Gemma4", "Gemma4Unified")  # their layers without a window rotate so
LAYERED = ("Gemma3", "Olmo3")  # layers with a window have a rope of their own
CONFIGS = {"Gemma3": "Gemma3TextConfig", "Gemma4": "Gemma4TextConfig", "Gemma4Unified": "Gemma4UnifiedTextConfig"}
CONFIGS |= {"Qwen3_5": "Qwen3_5TextConfig", "Qwen3_5Moe": "Qwen3_5MoeTextConfig"}

KEPT_WIDE = ("e_score_correction_bias", "expert_bias")  # of float32 in files of any type
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def takes_rope(row, rope):
    """Phi-3's config class refuses most kinds of rope, and so do its checkpoints.

    Where each type of layer has a rope of its own, transformers 5 looks for yarn's `truncate` beside them, not in them.
    Mixtral's class fails for most kinds without a width of heads. Queries of Ministral 3 grow from the very length on
    behind which longrope has other factors, so that none would grow where it is run.
    """
    name = FAMILY_ROWS[row][0]
    if name in PROPORTIONAL:
        return rope == "default"
    if name == "Ministral3" and rope == "longrope":
        return False
    if name == "Mixtral" and "head_dim" not in FAMILY_ROWS[row][1]:
        return rope in ("default", "linear", "llama3")
    return rope in ("default", "longrope") if name == "Phi3" else name not in LAYERED or rope != "yarn-all"


# What the ordinary run tests: every row of features with plain rope, and every rope kind on some family.
LATER = ("glm", "helium", "ministral", "ministral3", "hunyuan")  # near another row, or better with another rope
OWN_TESTS = (*BRANCH_ROWS, *LATENT_ROWS, *DELTA_ROWS, *DELTA_MOE, *GEMMA4_ROWS, *GEMMA4_MOE, *SCAN_ROWS, *SCAN_MOE)
CASES = [(row, "default") for row in FAMILY_ROWS if row not in OWN_TESTS and row not in LATER] + [
    ("llama", "linear"),
    ("llama", "dynamic"),
    ("llama", "llama3"),
    ("llama-head20", "yarn"),
    ("mistral", "yarn-factor"),
    ("qwen2", "yarn"),
    ("qwen3", "yarn-all"),
    ("qwen3", "linear"),
    ("olmo2", "llama3"),
    ("ernie", "llama3"),
    ("ministral3", "yarn"),
    ("hunyuan", "dynamic"),
    ("llama-head20", "longrope"),
    ("phi3-partial", "longrope"),
    ("gemma3", "linear"),
    ("olmo3", "yarn"),
    ("stablelm", "linear"),
]
# Every row with every rope that its config class takes.
EVERY_CASE = [
    (row, rope)
    for row in FAMILY_ROWS
    for rope in ROPES
    if takes_rope(row, rope) and row not in (*DELTA_MOE, *GEMMA4_MOE, *SCAN_MOE)
]


def make(row, rope="default", seed=0):
    """A random float32 model of a row, on the spot. Norms and biases are random too, so that none can be forgotten."""
    torch.set_num_threads(1)
    class_name, changes = FAMILY_ROWS[row]
    settings = {**BASE, **changes}
    head_dim = settings.get("qk_rope_head_dim") or settings.get("head_dim")
    head_dim = head_dim or settings["hidden_size"] // settings["num_attention_heads"]
    settings["rope_parameters"] = rope_of(rope, int(head_dim * settings.get("partial_rotary_factor", 1.0)) // 2)
    if class_name == "Ministral3":
        settings["rope_parameters"] |= {"llama_4_scaling_beta": 0.4, "original_max_position_embeddings": 16}
    if class_name == "HunYuanDenseV1" and rope == "dynamic":
        settings["rope_parameters"] |= {"alpha": 50.0}
    if class_name in LAYERED:
        local = {"rope_type": "default", "rope_theta": 700.0}
        settings["rope_parameters"] = {FULL: settings["rope_parameters"], SLIDING: local}
    if class_name in PROPORTIONAL:
        full = {"rope_type": "proportional", "rope_theta": 900.0, "partial_rotary_factor": 0.25}
        settings["rope_parameters"] = {FULL: full, SLIDING: {"rope_type": "default", "rope_theta": 700.0}}
    config = getattr(transformers, CONFIGS.get(class_name, f"{class_name}Config"))(**settings)
    model = getattr(transformers, f"{class_name}ForCausalLM")(config).eval()
    randomise(model, seed)
    model.generation_config.eos_token_id = None
    return model


def randomise(model, seed):
    """Weights of a size that keeps activations near 1, so that attention is neither flat nor a single token."""
    generator = torch.Generator().manual_seed(seed)
    is_gemma = model.config.model_type.startswith(("gemma", "vaultgemma"))  # adds 1 to norms, and scales what it embeds
    is_gemma4 = model.config.model_type.startswith("gemma4")
    adds_one = (is_gemma and not is_gemma4) or model.config.model_type.startswith(("qwen3_5", "qwen3_next"))
    is_turned = model.config.model_type == "gpt_oss"
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.data = 0.3 * noise
        elif name.endswith("sinks"):
            parameter.data = 1 + noise
        elif is_turned and name.endswith(TURNED):
            parameter.data = noise * 1.2 / parameter.shape[-2] ** 0.5
        elif name.endswith("A_log"):
            parameter.data = noise - 2  # what a net keeps fades in a few tokens, or in many
        elif "norm" in name or parameter.dim() == 1:
            parameter.data = (0 if adds_one and "linear_attn" not in name else 1) + 0.2 * noise
        elif "embed" in name:
            parameter.data = (0.5 / model.config.get_text_config().hidden_size ** 0.5 if is_gemma else 0.5) * noise
        else:
            parameter.data = noise * 1.2 / parameter.shape[-1] ** 0.5
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.copy_(1 + 0.2 * torch.randn(buffer.shape, generator=generator))
        if name.endswith(KEPT_WIDE):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))


def expert(folder):
    """The folder as it is opened; of a family whose matrices are stored transposed, one that is written of it once."""
    made = Path(folder) / "expert"
    if is_repacked(folder) and not made.exists():
        repack_folder(folder, made)
    return made if made.exists() else folder


def load(folder, dtype="fp32"):
    """The saved model as transformers runs it, with its plain attention and its plain loop over branches."""
    config = transformers.AutoConfig.from_pretrained(folder)
    reads_images = hasattr(config, "vision_config")
    kind = transformers.AutoModelForImageTextToText if reads_images else transformers.AutoModelForCausalLM
    how = {"attn_implementation": "eager", "experts_implementation": "eager"}
    if hasattr(config, "quantization_config"):
        how["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    return kind.from_pretrained(folder, dtype=DTYPES[dtype], **how).eval()


def save(model, folder, dtype="fp32", **options):
    """Save a copy in a type; the float32 model stays as it is."""
    saved = copy.deepcopy(model).to(DTYPES[dtype])
    for name, tensor in (*saved.named_parameters(), *saved.named_buffers()):
        if name.endswith(KEPT_WIDE):
            tensor.data = tensor.data.float()
    saved.save_pretrained(folder, **options)
    return folder
