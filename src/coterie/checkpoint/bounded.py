"""A Jinja environment for untrusted templates: they cannot escape the sandbox, loop forever or exhaust memory.

Jinja's own sandbox keeps them from Python's internals. In addition, a template has `MAX_S` of CPU time, and no string
or list that it makes may be longer than `MAX_LENGTH`, where a list counts with all that is nested in it (deep_size.py).
Operations that can multiply a size are checked before they run, all others by their result.
Knows nothing about chats.
Source: Jinja's documentation, "Sandbox", security considerations.
"""

from __future__ import annotations

import gc
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from string import Formatter
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coterie.checkpoint.deep_size import deep_size, sized

MAX_S = 1.0  # of CPU time; real templates take milliseconds
MAX_LENGTH = 1 << 24  # characters or elements
MAX_OUTPUT = 1 << 26  # characters of a whole prompt
_MAX_WIDTH, _MAX_BITS = 1000, 1 << 14
_WIDE = re.compile(r"\d{5}|\*")  # in a format string: an absurd width, or one taken from the arguments
_WIDTHS = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "tojson", "batch", "slice", "round", "wordwrap")
_DROPPED_FILTERS, _DROPPED_METHODS = ("urlize", "xmlattr"), ("translate",)
_running = threading.local()


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates by `template`, renders them by `render`; exceeding a bound raises jinja2's SecurityError."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **settings: Any) -> None:
        super().__init__(optimized=False, **settings)  # the optimizer would evaluate constants unchecked
        for name in _DROPPED_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters |= {"counted": _counted, "joined": _joined, "sized": _sized}

    def bound_filters(self) -> None:
        """Wrap all filters registered so far in the checks."""
        self.filters = {name: _bounded(name, made) for name, made in self.filters.items()}

    def template(self, source: str) -> jinja2.Template:
        """Compile a template, with checks on its loops, concatenations and literals. Raises what Jinja raises."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "counted")
        _watch(tree)
        return self.from_string(tree)

    def render(self, template: jinja2.Template, values: Mapping[str, Any]) -> str:
        """Render a template within the bounds. Raises what Jinja raises."""
        _running.until_s = time.thread_time() + MAX_S
        collected = _Collected()
        gc.callbacks.append(collected)
        try:
            return self._rendered(template, values)
        finally:
            gc.callbacks.remove(collected)

    @staticmethod
    def _rendered(template: jinja2.Template, values: Mapping[str, Any]) -> str:
        pieces, length = [], 0
        for piece in template.generate(values):
            length += len(piece)
            if length > MAX_OUTPUT:
                raise SecurityError(f"the template writes more than {MAX_OUTPUT} characters")
            pieces.append(piece)
        return "".join(pieces)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join the output of blocks, macros and calls (overrides Jinja's)."""
        return _joined(pieces)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Evaluate an operator whose result can be much larger than its operands."""
        _tick()
        its = None  # the deep size of the result, derived from the operands' sizes
        if operator == "**":
            _check(_bits(left) * abs(right) if isinstance(right, int) else 0, _MAX_BITS)
        elif operator == "*":
            _check(_length(left) * _times(right) + _length(right) * _times(left))
            _check(_bits(left) + _bits(right), _MAX_BITS)
            its = deep_size(left) * _times(right) + deep_size(right) * _times(left)
        elif operator == "+":
            _check(_length(left) + _length(right))
            its = deep_size(left) + deep_size(right)
        elif isinstance(left, str):
            _check_format(left, (right,))
        return _sized(super().call_binop(context, operator, left, right), its)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (Jinja's)
        """Call a function, a macro or a method."""
        _tick()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            args = _checked(name, owner, args, kwargs)
        elif isinstance(__obj, Macro) and (__obj.catch_varargs or __obj.catch_kwargs):
            _sized([*args, *kwargs.values()])  # the macro sees them as varargs and kwargs
        return _sized(super().call(__context, __obj, *args, **kwargs))


class _Collected:
    """A gc callback that extends the deadline by the time of collections in this thread.

    In a large process one may take a second, which is not the template's doing.
    """

    def __init__(self) -> None:
        self._thread, self._begun_s = threading.get_ident(), float("inf")

    def __call__(self, phase: str, _: Mapping[str, int]) -> None:
        if threading.get_ident() != self._thread:  # gc calls every callback; each counts its own thread's collections
            return
        if phase == "start":
            self._begun_s = time.thread_time()
        else:
            _running.until_s += max(time.thread_time() - self._begun_s, 0.0)


def _tick() -> None:
    if time.thread_time() > getattr(_running, "until_s", float("inf")):
        raise SecurityError(f"the template takes more than {MAX_S:g} s")


def _check(length: float, most: int = MAX_LENGTH) -> None:
    if length > most:
        raise SecurityError(f"the template makes a value of {length:.3g} parts, where {most} are the most")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _times(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _sized(value: Any, its: int | None = None) -> Any:
    """Check a value's length and deep size; containers come back as copies that know theirs. `its`: if it is known."""
    _check(_length(value))
    value = sized(value, its)
    if isinstance(value, list | tuple | dict):
        _check(deep_size(value))
    return value


def _check_format(text: str, given: Iterable[Any]) -> None:
    """Raise SecurityError for a format string (% or braces) whose result could be too large for these values."""
    if _WIDE.search(text):
        raise SecurityError("the template has a format with a width beyond all texts")
    _check(len(text) + (text.count("%") + text.count("{")) * max(map(deep_size, given), default=0))


def _checked(name: str, text: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a string method or filter, checked if it can make a string much longer."""
    given = (*args, *kwargs.values())
    if name in _DROPPED_METHODS:
        raise SecurityError(f"the template uses {name}, which is not supported here")
    if name in _WIDTHS:
        width = max((abs(one) for one in given if isinstance(one, int)), default=0)
        _check(width, _MAX_WIDTH)
        lines = 1 + str(text).count("\n") if name == "indent" else str(text).count("\t") if name == "expandtabs" else 0
        _check(width * (max(map(deep_size, given), default=0) if name == "batch" else lines))
    elif name in ("format", "format_map"):
        _check_format(str(text), given)
        _check(max((abs(one) for one in given if isinstance(one, int)), default=0), 1 << 63)
        for _, field, spec, _ in Formatter().parse(str(text)):
            if {".", "["} & set(field or "") or "{" in (spec or ""):
                raise SecurityError("the template has a format that goes into its values, or has its width from them")
    elif name == "replace":
        old, new = (args[at] if at < len(args) else kwargs.get(key, "") for at, key in enumerate(("old", "new")))
        _check(_length(text) + str(text).count(str(old)) * len(str(new)))
    elif name == "join" and isinstance(text, str) and args:
        pieces = list(_counted(args[0]))
        _check(sum(map(_length, pieces)) + len(text) * len(pieces))
        return (pieces, *args[1:])
    return args


def _bounded(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with checks on its arguments and its result."""
    takes = 1 if hasattr(made, "jinja_pass_arg") else 0  # such filters get the context or environment first

    @wraps(made)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _tick()
        first, rest = args[: takes + 1], args[takes + 1 :]
        value = first[-1]
        if name == "join":
            value, joint = list(_counted(value)), str(rest[0] if rest else kwargs.get("d", ""))
            if (attribute := rest[1] if len(rest) > 1 else kwargs.get("attribute")) is not None:
                value = list(map(make_attrgetter(first[0].environment, attribute), value))
            rest, kwargs = (joint,), {}
            _check(sum(len(str(one)) for one in _counted(value)) + len(joint) * len(value))
        elif name == "format":
            _check_format(str(value), (*rest, *kwargs.values()))
        elif name == "sum" and not isinstance(rest[1] if len(rest) > 1 else kwargs.get("start", 0), int | float):
            raise SecurityError("the template sums what is no number")
        else:
            _checked(name, value, rest, kwargs)
        return _sized(made(*first[:-1], value, *rest, **kwargs))

    return bounded


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """The elements of a loop; the time is checked at each."""
    for value in values:
        _tick()
        yield value


def _joined(values: Iterable[Any]) -> str:
    """The values' texts, concatenated."""
    return gathered(str(value) for value in values)


def gathered(pieces: Iterable[str]) -> str:
    """Concatenate pieces of a text up to MAX_LENGTH. Raises SecurityError beyond it."""
    kept, length = [], 0
    for piece in _counted(pieces):
        length += len(piece)
        _check(length)
        kept.append(piece)
    return "".join(kept)


def _watch(node: nodes.Node) -> None:
    """Rewrite a syntax tree in place: `a ~ b` is evaluated by `_joined`, and literal containers know their size."""
    for name, child in list(node.iter_fields()):
        changed = [_one(part) for part in child] if isinstance(child, list) else _one(child)
        setattr(node, name, changed)


def _one(child: Any) -> Any:
    if not isinstance(child, nodes.Node):
        return child
    _watch(child)
    if isinstance(child, nodes.Concat):
        return _filtered(nodes.List(child.nodes), "joined")
    is_written = isinstance(child, nodes.List | nodes.Dict) or (isinstance(child, nodes.Tuple) and child.ctx == "load")
    if is_written and not all(isinstance(part, nodes.Const) for part in child.iter_child_nodes()):
        return _filtered(child, "sized")
    return child


def _filtered(child: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, child), name, [], [], None, None)
