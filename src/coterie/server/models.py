"""GET /v1/models: the composition and its experts, each with its state, as OpenAI lists models.

Knows nothing about HTTP or threads.
"""

from __future__ import annotations

from typing import Any

from coterie.api import Coterie


def model_list(coterie: Coterie) -> list[dict[str, Any]]:
    """One row for the composition, which is its router's name, and one for each expert."""
    head = {"object": "model", "created": 0, "owned_by": "coterie"}
    composition = coterie.composition
    states = {state.name: state for state in coterie.status().experts}
    about = {"kind": "composition", "experts": len(composition.experts)}
    rows: list[dict[str, Any]] = [{"id": composition.name, **head, "coterie": about}]
    for expert in composition.experts:
        if expert.name == composition.name:
            continue  # a folder that is itself a checkpoint: one name for both
        found = states[expert.name]
        detail = {
            "kind": "expert",
            "description": expert.description,
            "resident": found.state != "absent",
            **{name: value for name, value in found.to_dict().items() if name != "name"},
        }
        rows.append({"id": expert.name, **head, "coterie": detail})
    return rows
