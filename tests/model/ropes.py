"""Rope kinds of tiny models, as a config of transformers says them."""

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 500.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1000.0},
    "yarn-all": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 500.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.3,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn-factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 128,
        "rope_theta": 10000.0,
        "attention_factor": 0.8,
    },
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 128, "rope_theta": 1000.0},
}
