"""Experts that say one thing: each token's successor is written into their weights, and nothing else moves them.

Knows nothing about what they are made to say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tests.system.tiny import CONFIG, SPECIAL, shapes, write_safetensors, write_tokenizer

from coterie.core.dtypes import DType, from_f32

FIRST_ID = 256 + len(SPECIAL)
END_ID = 256  # <|end|>


def write_scripted(folder: Path, pieces: Sequence[str], template: str, special: Sequence[str] = ()) -> Path:
    """An expert that says `pieces` and ends, whatever it is asked, so long as its prompt ends with a newline or a ].

    Each piece is a token, those of `special` are special ones; they differ from each other.
    """
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    for number, piece in enumerate(pieces):
        row = {**tokenizer["added_tokens"][0], "id": FIRST_ID + number, "content": piece, "special": piece in special}
        tokenizer["added_tokens"].append(row)
    file.write_text(json.dumps(tokenizer))
    config = {**CONFIG, "vocab_size": FIRST_ID + len(pieces), "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "<|end|>"}))
    _write_weights(folder, config, len(pieces))
    return folder


def _write_weights(folder: Path, config: dict, count: int) -> None:
    """Layers add nothing, so that the last token alone decides: the head's row for a token is who comes before it."""
    rng = np.random.default_rng(7)
    values = {name: np.ones(shape) if "norm" in name else np.zeros(shape) for name, shape in shapes(config).items()}
    embedding = rng.standard_normal(values["model.embed_tokens.weight"].shape)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    said = range(FIRST_ID, FIRST_ID + count)
    values["model.embed_tokens.weight"] = embedding
    head = values["lm_head.weight"]
    head[said[0]] = embedding[ord("\n")] + embedding[ord("]")]
    for before, after in zip(said, [*said[1:], END_ID], strict=True):
        head[after] = embedding[before]
    tensors = {
        name: (DType.BF16.value, array.shape, from_f32(array.astype(np.float32), DType.BF16).tobytes())
        for name, array in values.items()
    }
    write_safetensors(folder / "model.safetensors", tensors)
