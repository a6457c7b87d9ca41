"""Configs that are not supported: each is refused by name, in a sentence, and none is misunderstood."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.model.configs import RAW, config, family

from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.models.config import ModelConfig
from coterie.models.families import FAMILIES
from coterie.models.refused import REFUSED
from coterie.models.rope import KINDS


@pytest.mark.parametrize(
    ("model_type", "changes", "sentence"),
    [
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm = True means q and k norms chosen by config"),
        ("stablelm", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ("starcoder2", {"use_bias": False}, "use_bias = False is not supported for starcoder2"),
        ("starcoder2", {"hidden_act": "silu"}, "hidden_act 'silu' is not supported for starcoder2"),
        ("phi", {"hidden_act": "gelu_new", "qk_layernorm": True}, "qk_layernorm = True means"),
        ("phi", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported for phi"),
    ],
)
def test_what_families_with_layer_norms_do_not_run(model_type, changes, sentence):
    with pytest.raises(UnsupportedError, match=sentence):
        family(model_type, **changes)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.key)
def test_features_that_are_refused_by_name(row):
    assert config(**{row.key: None}) == config()
    for off in row.off:
        assert config(**{row.key: off}) == config()
    with pytest.raises(UnsupportedError) as caught:
        config(**{row.key: 7})
    assert row.key in str(caught.value)
    assert row.feature in str(caught.value)


NO_CLASS = {"architectures": None}


STRANGE_ROPE = {"rope_parameters": {"odd": {"rope_type": "default"}}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "mamba"}, "architecture 'mamba' with architectures"),
        ({"model_type": "mamba"}, "Coterie runs llama (LlamaForCausalLM), mistral"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "'llama' with architectures ['LlamaForSequenceC"),
        ({"model_type": ["llama"]}, "architecture ['llama']"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported for llama"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor 0.25 is not supported"),
        ({"rope_scaling": {"type": "su"}}, "rope type 'su' is not supported; Coterie runs default, linear, "),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "by layer type (full_attention) are not supported",
        ),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        (
            {"model_type": "seed_oss", "attention_out_bias": True},
            "attention_out_bias = True is not supported for seed_oss",
        ),
        (
            {"model_type": "gemma3", "architectures": ["Gemma3ForTokens"]},
            "runs the text model of Gemma3ForConditionalG",
        ),
        ({**NO_CLASS, "model_type": "gemma", "hidden_act": "relu"}, "hidden_act 'relu' is not supported for gemma"),
        ({**NO_CLASS, "model_type": "gemma", "hidden_activation": "gelu"}, "an activation named by a key of Gemma 2"),
        ({**NO_CLASS, "model_type": "gemma2", "hidden_activation": "relu"}, "'relu' is not supported for gemma2"),
        ({**NO_CLASS, "model_type": "gemma2", "use_bidirectional_attention": True}, "bidirectional attention"),
        ({**NO_CLASS, **STRANGE_ROPE, "model_type": "gemma3_text"}, "rope of layer type 'odd' is not supported"),
        ({"sliding_window": 8}, "a sliding window is not part of llama"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer type 'chunked_attention' is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "every layer must be full_attention"),
    ],
)
def test_other_refusals(changes, sentence):
    drop = ("architectures",) if changes.get("model_type") == "seed_oss" else ()
    with pytest.raises(UnsupportedError) as caught:
        config(drop=drop, **changes)
    assert sentence in str(caught.value)
    assert caught.value.where.startswith("config.json")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"hidden_size": 48.0}, "hidden_size is 48.0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be a whole number of at least 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it must be at most 10000"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must be a divisor of the 4 attention heads"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "5 does not divide hidden_size 48"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; it must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor is 0.5; it must be at least 1"),
        ({"rope_scaling": {"type": "yarn", "factor": "x"}}, "factor is 'x'"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            "high_freq_factor is 1; it must be above low_freq_factor, 4",
        ),
        ({"layer_types": ["full_attention"]}, "it must be a list of 2 names"),
        ({"rope_scaling": {"type": "longrope"}}, "short_factor is missing; it must be a list of 6 numbers above 0"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 5}}, "short_factor is a list of 5; it must be"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [0] * 6}}, "short_factor is a list of 6; it must be"),
        (
            {
                "rope_scaling": {"type": "longrope", "short_factor": [1] * 6},
                "original_max_position_embeddings": 1,
            },
            "original_max_position_embeddings is 1; it must be at least 2",
        ),
        ({"model_type": "phi3", "partial_rotary_factor": 0.25}, "is 0.25, which is 3 of the 12 channels of a head"),
        ({"model_type": "phi3", "partial_rotary_factor": 1.5}, "is 1.5, which is 18 of the 12 channels of a head"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers is [1]; it must be a list of 2 numbers"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, "each 0 or 1"),
        ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling is 0; it must be a number above 0"),
    ],
)
def test_wrong_values_name_the_key(changes, sentence):
    with pytest.raises(CheckpointError) as caught:
        config(drop=("architectures",), **changes)
    assert sentence in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "factor", "x"]), inner),
    max_leaves=4,
)


KEYS = sorted(
    [*RAW, "head_dim", "layer_types", "max_window_layers", "rope_parameters", "rope_scaling", "rope_theta"]
    + ["sliding_window", "use_sliding_window", "partial_rotary_factor", "original_max_position_embeddings"]
    + ["no_rope_layers", "no_rope_layer_interval", "attention_multiplier", "logits_scaling"]
    + ["hidden_activation", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"]
    + ["sliding_window_pattern", "rope_local_base_freq"]
    + [row.key for row in REFUSED[:4]]
)


RUN = [family.model_type for family in FAMILIES.values() if not family.modelled_only]


NUMBERS = st.one_of(st.sampled_from([0, 1, 2, 8.0, 64, 1e-9, 1e11, 10**400, -1, math.inf, math.nan]), st.floats())


ROPE = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(list(KINDS))},
    optional={
        **dict.fromkeys(["rope_theta", "factor", "low_freq_factor", "high_freq_factor", "attention_factor"], NUMBERS),
        **dict.fromkeys(["beta_fast", "beta_slow", "mscale", "mscale_all_dim"], NUMBERS),
        "original_max_position_embeddings": NUMBERS | st.integers(1, 10_000),
        "truncate": st.booleans(),
        "short_factor": st.lists(NUMBERS, min_size=5, max_size=6),
    },
)


def understood_or_refused(raw):
    """Either a config that holds together, or an error of ours that names the file."""
    try:
        found = ModelConfig.from_hf(raw, "config.json")
    except UsageError as error:
        return str(error).startswith("[config.json")
    frequencies = found.rope.inv_freq
    pairs = found.head_dim // 2
    fits = 0 < len(frequencies) <= pairs if FAMILIES[found.family].partial_rope else len(frequencies) == pairs
    whole = len(found.windows) == found.num_layers and fits
    return whole and all(0 < f < math.inf for f in (*frequencies, found.rope.scale)) and found.max_context >= 1


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(RUN), st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_config_is_understood_or_refused_in_a_sentence(model_type, changes):
    assert understood_or_refused({**RAW, "architectures": None, "model_type": model_type, **changes})


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(ROPE)
@example({"rope_type": "yarn", "beta_fast": 2.2250738585e-313})
@example({"rope_type": "yarn", "beta_slow": 1e308})
@example({"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 4e-137, "high_freq_factor": 1})
def test_any_rope_is_understood_or_refused_in_a_sentence(rope):
    assert understood_or_refused({**RAW, "rope_parameters": rope})
