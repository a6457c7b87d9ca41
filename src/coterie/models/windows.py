"""Which layers have a sliding window, and which have no rope, by config and family.

Knows nothing about the other numbers of a model (config.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from coterie.core.errors import UnsupportedError
from coterie.models.encoder import is_bidirectional
from coterie.models.family import FULL, SLIDING, Family, Window
from coterie.models.fields import Fields


def windows_of(config: Fields, family: Family, num_layers: int) -> tuple[int, ...]:
    """The window of each layer in tokens, 0 for none. Raises CheckpointError, UnsupportedError."""
    window = _window_tokens(config, family)
    if family.delta_nets or family.short_convs or family.state_spaces:
        return (0,) * num_layers
    types = _layer_types(config, num_layers)
    if family.window is Window.BY_PATTERN and types is None:
        every = config.count(family.pattern_key, family.window_pattern) if family.pattern_key else family.window_pattern
        types = [FULL if (i + family.pattern_first) % every == 0 else SLIDING for i in range(num_layers)]
    if types and family.per_layer_heads:
        types[-1] = FULL  # the last layer has no window, whatever the config says
    if family.window is Window.BY_TYPES and types is None:
        types = [SLIDING if window else FULL] * num_layers
    if family.window not in (Window.NEVER, Window.EVERY_LAYER):
        if types is None:
            windowed = _windowed_layers(config, family, num_layers) if window else ()
            types = [SLIDING if layer in windowed else FULL for layer in range(num_layers)]
        if SLIDING in types and not window:
            by_flag = family.window in (Window.BY_LAYER, Window.WITHOUT_ROPE)
            key = "use_sliding_window" if by_flag else "a sliding_window"
            raise config.wrong("layer_types", f"names {SLIDING} without a window", f"used with {key}")
        return tuple(window if kind == SLIDING else 0 for kind in types)
    uniform = SLIDING if window else FULL
    if types is not None and set(types) != {uniform}:
        fact = f"layer_types {sorted(set(types))} with a window of {window} is not supported for {family.model_type}"
        raise UnsupportedError(config.where, fact, f"every layer must be {uniform}")
    return (window,) * num_layers


def layers_without_rope(config: Fields, family: Family, num_layers: int) -> tuple[int, ...]:
    """Indices of the layers without rope. In `no_rope_layers`, 0 marks such a layer and 1 one with rope."""
    if family.rope_key and config.get(family.rope_key) != "rope":
        if config.get(family.rope_key) not in (None, "nope"):
            raise config.wrong(family.rope_key, f"is {config.get(family.rope_key)!r}", "rope or nope")
        return tuple(range(num_layers))
    if not family.full_layers_rotate and _window_tokens(config, family):
        return tuple(layer for layer, window in enumerate(windows_of(config, family, num_layers)) if not window)
    if not family.no_rope_interval:
        return ()
    interval = config.count("no_rope_layer_interval", family.no_rope_interval)
    rotates = config.get("no_rope_layers", [int((layer + 1) % interval != 0) for layer in range(num_layers)])
    if not isinstance(rotates, list) or len(rotates) != num_layers or any(one not in (0, 1) for one in rotates):
        raise config.wrong("no_rope_layers", f"is {rotates!r}", f"a list of {num_layers} numbers, each 0 or 1")
    return tuple(layer for layer, one in enumerate(rotates) if not one)


def _windowed_layers(config: Fields, family: Family, num_layers: int) -> Sequence[int]:
    """The layers with the window, if `layer_types` is absent."""
    if family.window is Window.WITHOUT_ROPE:
        return layers_without_rope(config, family, num_layers)
    first = config.raw.get("max_window_layers", family.window_from)
    if type(first) is not int or first < 0:
        raise config.wrong("max_window_layers", f"is {first!r}", "a whole number")
    return range(first, num_layers)


def _window_tokens(config: Fields, family: Family) -> int:
    """Tokens of the sliding window, 0 for none. An absent key means the family's default, a null one no window."""
    if family.both_sides_key:  # newer configs give the length of one side, older ones of both
        one = config.get("sliding_window")
        both = config.count(family.both_sides_key, family.window_tokens) if one is None else 0
        return (both // 2 if one is None else config.count("sliding_window")) + 1
    given = "sliding_window" in config.raw
    if family.window is Window.NEVER:
        if config.get("sliding_window") is not None:
            fact = f"a sliding window is not part of {family.model_type}"
            raise UnsupportedError(config.where, fact, "remove sliding_window or use model_type mistral")
        return 0
    by_flag = family.window in (Window.BY_LAYER, Window.WITHOUT_ROPE)
    off = by_flag and not config.flag("use_sliding_window")
    if off or config.get("sliding_window", None if given else family.window_tokens) is None:
        return 0
    window = config.count("sliding_window", family.window_tokens)
    return window // 2 + 1 if is_bidirectional(config, family) else window  # the config counts both sides


def _layer_types(config: Fields, num_layers: int) -> list[str] | None:
    types = config.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != num_layers:
        raise config.wrong("layer_types", f"is {types!r}", f"a list of {num_layers} names")
    types = [FULL if kind == "attention" else kind for kind in types]
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise UnsupportedError(
                config.where, f"layer type {kind!r} is not supported", f"Coterie runs {FULL} and {SLIDING}"
            )
    return types
