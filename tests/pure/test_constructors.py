"""Dataclasses with constructors written out: they are made, compared, hashed and shown as before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from inspect import signature
from types import ModuleType

import pytest
from benchmarks.constructors import with_constructors

BASE = '''"""Doc."""

from __future__ import annotations

from coterie.core.values import value


@value
class Base:
    """What it is.

    And more."""

    number: int
    name: str
'''

HEIR = '''"""Doc."""

from __future__ import annotations

from dataclasses import dataclass, field

from coterie.core.values import value
from base_of_test import Base

DEFAULT = ("x", "y")


@value
class Heir(Base):
    parts: tuple[str, ...] = DEFAULT  # what it has
    hidden: int = field(
        default=3, compare=False, repr=False
    )

    def sum(self) -> int:
        """A method stays."""
        return self.number + self.hidden


@dataclass(frozen=True, slots=True, order=True)
class Checked:
    low: int
    high: int = 9

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


@dataclass(slots=True, eq=False)
class Counts:
    each: list[int] = field(default_factory=lambda: [0] * 3)
    by_name: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Nothing:
    """No fields at all."""


class Plain:
    number: int = 1
'''


def _loaded(sources: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name, source in sources.items():
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(source, name, "exec"), module.__dict__)
    return module


SOURCES = {"base_of_test": BASE, "heir_of_test": HEIR}
MADE: list[Callable[[ModuleType], object]] = [
    lambda m: m.Heir(1, "a"),
    lambda m: m.Heir(number=1, name="a", hidden=7),
    lambda m: m.Heir(1, "a", ("z",), 4),
    lambda m: replace(m.Heir(1, "a"), name="b"),
    lambda m: m.Checked(1),
    lambda m: m.Checked(2, 3),
    lambda m: m.Nothing(),
    lambda m: m.Plain().number,
]


def test_they_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _loaded(with_constructors(SOURCES), monkeypatch)
    ours_made = [make(ours) for make in MADE]
    theirs = _loaded(SOURCES, monkeypatch)
    theirs_made = [make(theirs) for make in MADE]
    assert [repr(one) for one in ours_made] == [repr(one) for one in theirs_made]
    assert [hash(one) for one in ours_made] == [hash(one) for one in theirs_made]
    for equal in ([[a == b for b in made] for a in made] for made in (ours_made, theirs_made)):
        assert equal[0] == [True, True, False, False, False, False, False, False], "hidden is not compared"
    for name in ("Heir", "Checked", "Counts"):
        our, their = getattr(ours, name), getattr(theirs, name)
        assert [field.name for field in fields(our)] == [field.name for field in fields(their)]
        assert list(signature(our).parameters) == list(signature(their).parameters)
        assert not hasattr(our, "__slots__")
    assert ours.Heir(1, "a").sum() == 4
    assert ours.Checked(1, 2) < ours.Checked(1, 3)
    assert ours.Counts() != ours.Counts()
    assert ours.Counts(by_name={"a": 1}).by_name == {"a": 1}


def test_each_object_has_its_own_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _loaded(with_constructors(SOURCES), monkeypatch)
    module.Counts().each.append(1)
    assert module.Counts().each == [0, 0, 0]


def test_what_is_checked_at_the_start_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _loaded(with_constructors(SOURCES), monkeypatch)
    with pytest.raises(ValueError, match="low is above high"):
        module.Checked(10)
    with pytest.raises(TypeError):
        module.Heir(1)


def test_a_default_of_another_module_is_refused() -> None:
    base = BASE.replace("name: str", "name: str = ''")
    with pytest.raises(ValueError, match="Heir inherits a default of name"):
        with_constructors({"base_of_test": base, "heir_of_test": HEIR})


@pytest.mark.parametrize(
    ("had", "has", "sentence"),
    [
        ("    number: int", "    number: ClassVar[int] = 1", "ClassVar"),
        ("    number: int", "    number: int = field(init=False)", "number is no parameter"),
        ("@value", "@dataclass(kw_only=True)", "Base takes fields by name only"),
        ("    name: str", "    name: str\n\n    def __post_init__(self) -> None: ...", "Heir inherits __post_init__"),
    ],
)
def test_what_a_written_constructor_would_do_otherwise_is_refused(had: str, has: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        with_constructors({"base_of_test": BASE.replace(had, has), "heir_of_test": HEIR})
