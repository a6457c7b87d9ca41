"""Shape letters, symbolic sizes, and the shape check used at module boundaries.

Letters: B sequences, T tokens this step (ragged, flat), R sampled rows, S context tokens, D hidden,
F intermediate, V vocabulary, H query heads, K key/value heads, C head channels, L layers, P pages,
Z page size (tokens), X experts.

Knows nothing about ops.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from coterie.core.values import value


class Symbol(Enum):
    """A dimension whose size is known only when a step runs."""

    T = "T"
    B = "B"
    R = "R"
    S = "S"  # total context length of all sequences, after this step
    TS = "TS"  # attention scores of each token with its whole context, masked ones included

    def __repr__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Times:
    """A fixed number of rows per sequence of the step, for instance the patches of its image."""

    rows: int

    def __repr__(self) -> str:
        return f"{self.rows}B"


Dim: TypeAlias = int | Symbol | Times
Shape: TypeAlias = tuple[Dim, ...]


@value
class Sizes:
    """The values of the symbols in a step.

    T tokens, B sequences, R sampled rows; `context_tokens`: sum of the sequences' lengths after this step (what
    attention reads); `pairs`: sum over tokens of the positions visible to each (what attention computes).
    """

    T: int
    B: int
    R: int
    context_tokens: int
    pairs: int

    @classmethod
    def prefill(cls, batch: int, tokens: int) -> Sizes:
        """Prefill of `batch` prompts of `tokens` tokens each, sampling once per prompt."""
        return cls.continued(batch, tokens, 0)

    @classmethod
    def continued(cls, batch: int, tokens: int, before: int) -> Sizes:
        """Prefill of `tokens` more tokens of each of `batch` prompts, of which `before` are already in the KV cache."""
        _at_least_one(batch=batch, tokens=tokens)
        length = before + tokens
        pairs = (length * (length + 1) - before * (before + 1)) // 2
        return cls(batch * tokens, batch, batch, batch * length, batch * pairs)

    @classmethod
    def decode(cls, batch: int, context: int) -> Sizes:
        """Decode of one token for each of `batch` sequences, with context length `context` after the step."""
        _at_least_one(batch=batch, context=context)
        return cls(batch, batch, batch, batch * context, batch * context)

    def of(self, dim: Dim) -> int:
        """The value of a dimension in this step."""
        if isinstance(dim, int):
            return dim
        if dim is Symbol.T:
            return self.T
        if dim is Symbol.R:
            return self.R
        if dim is Symbol.B:
            return self.B
        if dim is Symbol.S:
            return self.context_tokens
        if isinstance(dim, Times):
            return dim.rows * self.B
        # Symbol.TS: exact for sequences of equal length; the padded length of others is not known here.
        return max(self.pairs, self.T * -(-self.context_tokens // self.B) if self.B else 0)

    def count(self, shape: Shape) -> int:
        """Number of elements of a tensor of this shape in this step."""
        n = 1
        for dim in shape:
            n *= self.of(dim)
        return n


def _at_least_one(**named: int) -> None:
    """Raise ValueError naming the number that is below one."""
    for name, number in named.items():
        if number < 1:
            raise ValueError(f"{name} is {number}, but a step has at least 1")


def trailing(shape: Shape) -> int:
    """Product of all dimensions but the first. Raises ValueError if one of these is symbolic."""
    n = 1
    for dim in shape[1:]:
        if not isinstance(dim, int):
            raise ValueError(f"dimension {dim!r} of {shape} is symbolic but only the first may be")
        n *= dim
    return n


def fixed(shape: Shape) -> tuple[int, ...]:
    """The numeric dimensions, in order; a weight has no others."""
    return tuple(dim for dim in shape if isinstance(dim, int))


def numbers_in(dims: Shape) -> int:
    """Product of the dimensions; 0 if one of them is symbolic."""
    n = 1
    for dim in dims:
        n *= dim if isinstance(dim, int) else 0
    return n


def check(letters: str, *named_shapes: tuple[str, tuple[int, ...]]) -> dict[str, int]:
    """Bind letters to sizes: `check("T D, D", ("x", x.shape), ("w", w.shape))` returns {"T": .., "D": ..}.

    Raises ValueError naming both tensors and both sizes when one letter would have two sizes.
    """
    bound: dict[str, tuple[int, str]] = {}
    specs = [spec.split() for spec in letters.split(",")]
    if len(specs) != len(named_shapes):
        raise ValueError(f"{len(specs)} shapes are specified by {letters!r} but {len(named_shapes)} tensors were given")
    for spec, (name, shape) in zip(specs, named_shapes, strict=True):
        if len(spec) != len(shape):
            raise ValueError(f"{name} has {len(shape)} dimensions {shape} but {' '.join(spec)!r} wants {len(spec)}")
        for letter, size in zip(spec, shape, strict=True):
            known, owner = bound.setdefault(letter, (size, name))
            if known != size:
                raise ValueError(f"{letter} is {known} in {owner} but {size} in {name} {shape}")
    return {letter: size for letter, (size, _) in bound.items()}
