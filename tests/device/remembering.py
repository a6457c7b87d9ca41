"""Triton's interpreter without making the same things anew: its types and shapes are many objects, and they are few.

For each operation it made the type of the result, its shape as a tuple of constants that have types too, and a table of
NumPy's types; for each launch and each call of one function by another it swapped the functions of the language for its
own. Together that was half of its time on small blocks. What is computed is as before. Knows nothing about kernels.
"""

from __future__ import annotations

from triton import language
from triton.language import core
from triton.runtime import interpreter


class _Swapped:
    """What is done once is not undone behind a launch."""

    def restore(self) -> None:
        """Leave the language as it is."""


def remember() -> None:
    """Have the interpreter look types and shapes up that it has met, and the language be its own for good."""
    assert language.core is core  # both are looked for among this module's names
    interpreter._patch_lang(remember)
    interpreter._patch_lang = lambda fn: _Swapped()
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)
    interpreter._get_np_dtype = _by_name(interpreter._get_np_dtype)
    core.block_type.__init__ = _by_shape(core.block_type.__init__)
    core.tensor.__init__ = _by_type(core.tensor.__init__)
    core._unwrap_if_constexpr = _most_are_plain(core._unwrap_if_constexpr)


def _by_name(plain):
    """NumPy's type of a Triton type, which is that of its scalars."""
    found = {}

    def np_dtype(tt_dtype):
        name = tt_dtype.scalar.name
        if name not in found:
            found[name] = plain(tt_dtype)
        return found[name]

    return np_dtype


def _by_shape(plain):
    """A block's type: all of it but its scalars follows from its shape, which nobody changes."""
    known = {}

    def init(self, element_ty, shape):
        sizes = tuple([size.value if type(size) is core.constexpr else size for size in shape])
        if sizes not in known:
            plain(self, element_ty, shape)
            known[sizes] = (self.shape, self.numel, self.name.removesuffix(f"{element_ty}>"))
            return
        self.element_ty = element_ty
        self.shape, self.numel, name = known[sizes]
        self.name = f"{name}{element_ty}>"

    return init


def _by_type(plain):
    """A tensor: all of it but its values follows from its type."""
    known = {}

    def init(self, handle, type):
        if type.name not in known:
            plain(self, handle, type)
            known[type.name] = (self.shape, self.numel)
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known[type.name]

    return init


def _most_are_plain(plain):
    """The value of a constant, and all else as it is."""

    def unwrap(o):
        kind = type(o)
        if kind is core.constexpr:
            return o.value
        if kind is int or kind is core.dtype or kind is core.tensor:
            return o
        return plain(o)

    return unwrap
