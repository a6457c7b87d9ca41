"""What a template may take, beside what the process does in the same thread meanwhile."""

from __future__ import annotations

import gc

import pytest
from jinja2.exceptions import SecurityError

from coterie.checkpoint import bounded
from coterie.checkpoint.bounded import BoundedEnvironment

COUNTS = "{% for number in range(9) %}{{ number|string }}{% endfor %}"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> BoundedEnvironment:
    """Templates have a fiftieth of a second."""
    monkeypatch.setattr(bounded, "MAX_S", 0.02)
    return BoundedEnvironment()


def test_a_garbage_collection_is_not_the_templates_time(environment: BoundedEnvironment) -> None:
    """A large process takes long for one, whoever's allocation called for it."""
    held = [[number] for number in range(1_000_000)]
    environment.globals["collect"] = gc.collect
    assert environment.render(environment.template("{{ collect() }}" + COUNTS), {}).endswith("012345678")
    assert len(held) == 1_000_000
    assert not [one for one in gc.callbacks if isinstance(one, bounded._Collected)]


def test_its_own_time_counts_on_behind_one(environment: BoundedEnvironment) -> None:
    environment.globals["collect"] = gc.collect
    loops = "{% for one in range(999) %}{% for two in range(999) %}{{ two|string }}{% endfor %}{% endfor %}"
    with pytest.raises(SecurityError, match="takes more than"):
        environment.render(environment.template("{{ collect() }}" + loops), {})
    assert not [one for one in gc.callbacks if isinstance(one, bounded._Collected)]
