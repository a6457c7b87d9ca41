"""A call of the GPU's driver fails while experts are served: answers are sentences then, and right the next time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.failing_gpu import CALLS, MEMORY, FailingDriver
from tests.system.test_cuda import ONE_EXPERT, QUERIES, Gpu, lazy

from coterie.api import Coterie, Options
from coterie.core.errors import CoterieError, DeviceError

__all__ = ["lazy"]  # a fixture
OPTIONS = Options(device="cuda", near_bytes=ONE_EXPERT)
ROUNDS = 2  # in which each call that is counted comes
FEW, STRIDE = 12, 41  # of calls that are few each fails in turn, of the others some


def driver(call: str = "", at: int = 0, how: str = "error") -> FailingDriver:
    return FailingDriver(call, at, how, total_bytes=2**30, settle_s=1e-4)


def asked(coterie: Coterie) -> list[object]:
    """The answers, or the sentences in their place; then memory that nobody uses goes."""
    found: list[object] = []
    for query in QUERIES:
        try:
            found.append(coterie.ask(query).token_ids)
        except CoterieError as error:
            found.append(f"{type(error).__name__}: {error}")
    coterie.release_idle()
    return found


def is_sentence(answer: object) -> bool:
    return isinstance(answer, str) and "\n" not in answer


def looked_over(coterie: Coterie) -> None:
    coterie.parts.engine.check_integrity()
    coterie.parts.cache.check_integrity()


@pytest.fixture
def sound(folder: Path, lazy: Gpu) -> tuple[list[object], Counter[str]]:
    """The answers of two rounds without a fault, and how often that makes each call."""
    lazy.driver = driver()
    with Coterie.open(str(folder), OPTIONS) as coterie:
        first = asked(coterie)
        assert asked(coterie) == first
    return first, lazy.driver.counts.copy()


def faults(counts: Counter[str], how: str, every: bool) -> list[tuple[str, int]]:
    calls = MEMORY if how == "full" else CALLS
    return [
        (call, at) for call in calls for at in range(0, counts[call], 1 if every or counts[call] <= FEW else STRIDE)
    ]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["error", "late", "full"])
def test_what_fails_is_told_and_the_next_round_is_right(
    folder: Path, lazy: Gpu, sound: tuple[list[object], Counter[str]], how: str, every: bool
) -> None:
    answers, counts = sound
    wrong = {}
    for fault in faults(counts, how, every):
        lazy.driver = driver(*fault, how)
        try:
            with Coterie.open(str(folder), OPTIONS) as coterie:
                for _ in range(ROUNDS):
                    for answer, right in zip(asked(coterie), answers, strict=True):
                        assert answer == right or is_sentence(answer)
                    looked_over(coterie)
                    if lazy.driver.has_failed:
                        break
                had_failed, last = lazy.driver.has_failed, asked(coterie)
                if lazy.driver.has_failed and not had_failed:  # how often calls are made varies: this one came only now
                    last = asked(coterie)
                assert last == answers
                looked_over(coterie)
        except CoterieError as error:  # it could not be opened, which is a sentence too
            if not is_sentence(str(error)):
                wrong[fault] = str(error)
        except Exception as error:
            wrong[fault] = f"{type(error).__name__}: {error}"
    assert wrong == {}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_gpu_that_is_gone_is_told_to_all_who_ask(
    folder: Path, lazy: Gpu, sound: tuple[list[object], Counter[str]], every: bool
) -> None:
    _, counts = sound
    wrong = {}
    for fault in faults(counts, "gone", every):
        lazy.driver = driver(*fault, "gone")
        try:
            with Coterie.open(str(folder), OPTIONS) as coterie:
                asked(coterie)
                if lazy.driver.has_failed:
                    assert all("start Coterie again" in str(answer) for answer in asked(coterie))
                looked_over(coterie)
        except DeviceError as error:
            if "start Coterie again" not in str(error):
                wrong[fault] = str(error)
        except Exception as error:
            wrong[fault] = f"{type(error).__name__}: {error}"
    assert wrong == {}
