"""Adapters of tiny experts, and what is asked of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from coterie.api import Coterie, Query

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAMES = ("german", "sql", "tax")


def trained_on(folder: Path, base: str) -> Path:
    """An adapter whose config says what its base was called."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    return folder


def greedy(prompt: str, expert: str, max_tokens: int = 6) -> Query:
    return replace(Query.text(prompt, expert), max_tokens=max_tokens, ignore_end=True)


def tokens_of(coterie: Coterie, expert: str) -> tuple[int, ...]:
    return coterie.ask(greedy("how many rows?", expert)).token_ids
