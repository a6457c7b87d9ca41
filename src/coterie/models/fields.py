"""Typed look-ups in a raw config.json, with errors that name the key.

Knows nothing about which keys exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.core.errors import CheckpointError

MAX_COUNT = 2**31  # token ids and positions are 32-bit integers
MAX_NUMBER = 1e12  # far beyond any real setting, and float32 arithmetic with it stays finite


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it came from. A key that is null counts as absent.

    `names`: key here -> key in the file, where they differ.
    """

    raw: Mapping[str, Any]
    where: str
    names: Mapping[str, str] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` when the key is absent or null."""
        value = self.raw.get(key)
        return default if value is None else value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1. Raises CheckpointError."""
        value = self.get(key, default)
        if value is None:
            raise self.wrong(key, "is missing", "a whole number of at least 1")
        if type(value) is not int or not 1 <= value < MAX_COUNT:
            raise self.wrong(key, f"is {value!r}", f"a whole number of at least 1 and below {MAX_COUNT}")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 0. Raises CheckpointError."""
        value = self.get(key, default)
        return 0 if type(value) is int and value == 0 else self.count(key, default)

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0. Raises CheckpointError."""
        value = self.get(key, default)
        if value is None:
            raise self.wrong(key, "is missing", "a number above 0")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_NUMBER:
            raise self.wrong(key, f"is {value!r}", f"a number above 0 and below {MAX_NUMBER:g}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false. Raises CheckpointError."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"is {value!r}", "true or false")
        return value

    def layer_numbers(self, key: str, default: Sequence[int] = ()) -> Sequence[int]:
        """A list of layer indices. Raises CheckpointError."""
        value = self.get(key, list(default))
        if not isinstance(value, list) or any(type(layer) is not int for layer in value):
            raise self.wrong(key, f"is {value!r}", "a list of numbers of layers")
        return value

    def layer_kinds(self, key: str, num_layers: int, kinds: Sequence[str], default: Sequence[str] = ()) -> list[str]:
        """One of the names `kinds` for each layer. Raises CheckpointError."""
        value = self.get(key, list(default))
        if not isinstance(value, list) or len(value) != num_layers or any(kind not in kinds for kind in value):
            wanted = f"a list of {num_layers} names, {', '.join(kinds[:-1])} or {kinds[-1]}"
            raise self.wrong(key, f"is {value!r}", wanted)
        return value

    def section(self, key: str) -> Fields | None:
        """A nested object, or None when it is absent, null or empty. Raises CheckpointError."""
        value = self.get(key)
        if not value and value is not False:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, f"is {value!r}", "an object")
        return Fields(value, f"{self.where}: {key}")

    def own_code(self, kind: str = "AutoModel") -> str | None:
        """The custom class that a folder's `auto_map` names for `kind`; None if it has no code of its own."""
        classes = self.get("auto_map")
        return str(classes[kind]) if isinstance(classes, dict) and kind in classes else None

    def wrong(self, key: str, fact: str, wanted: str) -> CheckpointError:
        """The error for a key whose value is not what is wanted."""
        return CheckpointError(self.where, f"{self.names.get(key, key)} {fact}", f"it must be {wanted}")
