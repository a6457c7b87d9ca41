"""Rewrites dataclasses into the form that mypyc compiles best: explicit constructors, and native fields.

    @value                       @dataclass(unsafe_hash=True, init=False)
    class Span:            ->    class Span:
        start_s: float               start_s: float
        end_s: float = 0.0           end_s: float = 0.0
                                     def __init__(self, start_s: float, end_s: float = 0.0) -> None: ...

mypyc gives classes native fields, but not with an unknown decorator or slots=True, and it leaves the constructor of a
dataclass to the interpreter. Classes are no longer frozen: mypy has checked the source.
Knows nothing about what the classes are for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# The equivalent of `value` of core/values.py that mypyc understands.
VALUE = "@dataclass(unsafe_hash=True, init=False)"
OPEN = "@mypyc_attr(allow_interpreted_subclasses=True)"
REUSED = "@mypyc_attr(free_list_len=1)"  # reuse the memory of the previous step's object
HEIRS = {"Event"}  # classes with subclasses that are not compiled
FUTURE = "from __future__ import annotations\n"
IMPORTS = "from dataclasses import dataclass\nfrom mypy_extensions import mypyc_attr\n"
DROPPED = ("slots", "frozen")  # mypyc does not support slots, and frozen would make each assignment a call


@dataclass(frozen=True)
class Field:
    """A field of a class: its annotation, and its default or default factory, as source."""

    name: str
    annotation: str
    default: str | None
    factory: str | None

    @property
    def parameter(self) -> str:
        """The parameter of the constructor."""
        if self.factory is not None:
            return f"{self.name}: {self.annotation} | None = None"
        return f"{self.name}: {self.annotation}" + (f" = {self.default}" if self.default is not None else "")

    @property
    def assignment(self) -> str:
        """The statement in the constructor."""
        made = f"{self.factory}() if {self.name} is None else {self.name}" if self.factory is not None else self.name
        return f"self.{self.name} = {made}"


def with_constructors(sources: Mapping[str, str]) -> dict[str, str]:
    """The modules with their dataclasses rewritten. These may inherit from each other across modules.

    Raises ValueError for an inherited default, which the other module could not name, and for what is not supported:
    fields with init=False or kw_only, and an inherited `__post_init__`.
    """
    trees = {name: ast.parse(source) for name, source in sources.items()}
    classes = {found.name: found for tree in trees.values() for found in _dataclasses(tree)}
    made = {}
    for name, source in sources.items():
        lines = source.split("\n")
        # From the end, so that the line numbers of the rest stay valid.
        for found in sorted(_dataclasses(trees[name]), key=lambda one: -one.lineno):
            _rewrite(lines, found, classes)
        made[name] = "\n".join(lines).replace(FUTURE, f"{FUTURE}{IMPORTS}", 1)
    return made


def _dataclasses(tree: ast.Module) -> Iterator[ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(
            _name(word) in ("value", "dataclass") for word in node.decorator_list
        ):
            yield node


def _name(node: ast.expr) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


def _rewrite(lines: list[str], found: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> None:
    """Insert the constructor after the fields, and replace the decorator by one that mypyc understands."""
    own = [node for node in found.body if isinstance(node, ast.AnnAssign)]
    if own:
        fields = _fields(found, classes)
        parameters = ", ".join(["self", *[field.parameter for field in fields]])
        body = [field.assignment for field in fields] + (["self.__post_init__()"] if _has_more(found) else [])
        made = [f"    def __init__({parameters}) -> None:", *[f"        {line}" for line in body]]
        at = own[-1].end_lineno or own[-1].lineno
        lines[at:at] = ["", *made]
    for word in found.decorator_list:
        if _name(word) in ("value", "dataclass"):
            opened = [OPEN if found.name in HEIRS else REUSED]
            lines[word.lineno - 1 : word.end_lineno] = [*opened, _decorator(found.name, word, has_init=bool(own))]


def _decorator(name: str, word: ast.expr, has_init: bool) -> str:
    if _name(word) == "value":
        return VALUE if has_init else VALUE.replace(", init=False", "")
    said = {key.arg or "": ast.unparse(key.value) for key in word.keywords} if isinstance(word, ast.Call) else {}
    if "kw_only" in said:
        raise ValueError(f"{name} takes fields by name only, which its written constructor would not")
    if said.get("frozen") == "True" and said.get("eq") != "False":
        said["unsafe_hash"] = "True"  # keep hashing by fields
    kept = {key: text for key, text in said.items() if key not in DROPPED} | ({"init": "False"} if has_init else {})
    return f"@dataclass({', '.join(f'{key}={text}' for key, text in kept.items())})"


def _has_more(found: ast.ClassDef) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "__post_init__" for node in found.body)


def _fields(found: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Sequence[Field]:
    fields: dict[str, Field] = {}
    for base in found.bases:
        if ast.unparse(base) in classes:
            if _has_more(classes[ast.unparse(base)]):
                raise ValueError(f"{found.name} inherits __post_init__, which its written constructor would not call")
            for field in _fields(classes[ast.unparse(base)], classes):
                if field.default is not None or field.factory is not None:
                    raise ValueError(f"{found.name} inherits a default of {field.name}, which only its module can name")
                fields[field.name] = field
    for node in found.body:
        if isinstance(node, ast.AnnAssign):
            field = _field(node)
            fields[field.name] = field
    return tuple(fields.values())


def _field(node: ast.AnnAssign) -> Field:
    name, annotation, default, factory = ast.unparse(node.target), ast.unparse(node.annotation), node.value, None
    if annotation.split("[")[0].split(".")[-1] in ("ClassVar", "InitVar"):
        raise ValueError(f"{name}: {annotation} is no field, but a written constructor would take it")
    if isinstance(default, ast.Call) and _name(default) == "field":
        said = {key.arg: key.value for key in default.keywords}
        if not {"init", "kw_only"}.isdisjoint(said):
            raise ValueError(f"{name} is no parameter, or one by name only, which a written constructor does not know")
        factory, default = said.get("default_factory"), said.get("default")
    made = (
        None
        if factory is None
        else f"({ast.unparse(factory)})"
        if isinstance(factory, ast.Lambda)
        else ast.unparse(factory)
    )
    return Field(name, annotation, None if default is None else ast.unparse(default), made)
