"""A decoder whose layers are a norm and a single block each.

Knows nothing about config files, checkpoints or devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.models.blocks import Decoder


@dataclass(frozen=True, slots=True)
class SingleDecoder(Decoder):
    """Appends one block per layer: a state space, attention, or a feed-forward block."""

    def _layer(self, x: str, layer: int) -> str:
        self.builder.stage = f"layers.{layer}"
        names, prefix = self.config.names, self.config.names.layer.format(layer)
        h = self._norm("input_norm", x, prefix + names.attention_norm)
        plain = layer in (self.config.plain_layers or ())
        made = self._feed_forward(h, prefix) if plain else self._token_mixer(h, layer, prefix)
        return self._op("add", "out", (x, made))
