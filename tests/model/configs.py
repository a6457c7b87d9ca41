"""Configs of a small Llama and of families' defaults, and those in folders, with changes.

Knows nothing about what is read of them.
"""

import json
import shutil

import pytest

from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.config import ModelConfig
from coterie.models.model import open_model

RAW = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def config(drop=(), **changes):
    raw = {key: value for key, value in {**RAW, **changes}.items() if key not in drop}
    return ModelConfig.from_hf(raw, "config.json")


def family(model_type, drop=(), **changes):
    return config(drop=("architectures", *drop), model_type=model_type, **changes)


def changed(folder, target, **changes):
    """A copy of an expert's folder with other keys in its config.json."""
    shutil.copytree(folder, target)
    raw = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**raw, **changes}))
    return target


def check_refused(folder, target, changes, sentence):
    """That a model with these changes is not opened, and the sentence that says why."""
    with pytest.raises((CheckpointError, UnsupportedError), match=sentence):
        open_model(changed(folder, target, **changes))
