"""Files whose status time alone is another: their experts come in again, and by the weights that are there now."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.tiny import write_adapter_of, write_expert, write_reranker

from coterie.api import Chunk, Coterie, Message, Options, Query
from coterie.api.touched import is_touched
from coterie.core.errors import TransferError
from coterie.engine.policy import Policy
from coterie.engine.request import ChoiceParams, SamplingParams
from coterie.models.model import open_model

ONE_EXPERT = 100 * 1024
PROMPT = "say it in other words, as often as before"


def asked(coterie: Coterie, name: str) -> tuple[int, ...]:
    return coterie.ask(Query.text(PROMPT, name)).token_ids


def weights(office: Path, name: str = "ada") -> Path:
    found: Path = next(iter((office / name).glob("*.safetensors")))
    return found


def made_private(path: Path) -> None:
    path.chmod(0o600)


def linked(path: Path) -> None:
    os.link(path, path.with_suffix(".backup"))


def copied_over(path: Path) -> None:
    """By itself, with its time set back."""
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


TOUCHES = [made_private, linked, copied_over]


@pytest.fixture
def office(tmp_path: Path) -> Path:
    for seed, name in enumerate(("ada", "bob")):
        write_expert(tmp_path / "office" / name, seed)
    return tmp_path / "office"


@pytest.fixture
def small(office: Path) -> Iterator[Coterie]:
    """A budget of one expert, so that every change of expert reads the disk."""
    with Coterie.open(office, Options(near_bytes=ONE_EXPERT, policy=Policy(turn_steps=4, max_steps=1))) as coterie:
        yield coterie


@pytest.mark.parametrize("touch", TOUCHES)
def test_a_touched_file_is_read_as_before(office: Path, small: Coterie, touch: Callable[[Path], None]) -> None:
    before = asked(small, "ada")
    asked(small, "bob")
    assert not is_touched(small.models["ada"].layout)
    touch(weights(office))
    assert is_touched(small.models["ada"].layout)
    assert asked(small, "ada") == before
    assert not is_touched(small.models["ada"].layout)
    found = small.rescan()
    assert (found.added, found.renewed, dict(found.kept)) == ((), (), {})


def test_other_weights_with_the_time_of_the_former_are_read_whole(office: Path, small: Coterie, tmp_path: Path) -> None:
    """And nothing is left of what the former have computed, though the prompt begins the same."""
    other = write_expert(tmp_path / "other", 7)
    with Coterie.open(other) as alone:
        expected = asked(alone, "")
    before, path = asked(small, "ada"), weights(office)
    assert before != expected
    asked(small, "bob")
    times = path.stat()
    shutil.copyfile(weights(other.parent, "other"), path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert asked(small, "ada") == expected


def test_another_head_that_scores_is_read_too(tmp_path: Path) -> None:
    judge, other = (write_reranker(tmp_path / str(seed) / "judge", seed) for seed in (3, 7))
    with Coterie.open(other) as alone:
        expected = alone.rerank(PROMPT, ["a", "b"])
    path = judge / "model.safetensors"
    with Coterie.open(judge) as coterie:
        assert coterie.rerank(PROMPT, ["a", "b"]) != expected
        coterie.unload("judge")
        times = path.stat()
        shutil.copyfile(other / "model.safetensors", path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert coterie.rerank(PROMPT, ["a", "b"]) == expected
    with Coterie.open(judge.parent) as coterie:
        made_private(path)
        coterie.rerank(PROMPT, ["a", "b"])
        assert coterie.rescan().to_dict() == {"added": [], "renewed": [], "removed": [], "kept": {}, "left_out": {}}


def test_another_header_of_the_same_size_is_refused(office: Path, small: Coterie) -> None:
    asked(small, "ada")
    asked(small, "bob")
    path = weights(office)
    times, data = path.stat(), path.read_bytes()
    swapped = data.replace(b"k_proj", b"?_proj").replace(b"v_proj", b"k_proj").replace(b"?_proj", b"v_proj")
    assert swapped != data
    for other in (swapped, data.replace(b"up_proj", b"up_porj")):  # tensors in other places, and one that lacks
        path.write_bytes(other)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert is_touched(small.models["ada"].layout)
        with pytest.raises(TransferError, match="status time"):
            asked(small, "ada")


def test_loads_that_are_wished_for_and_pinned_experts(office: Path, small: Coterie) -> None:
    before = asked(small, "ada")
    asked(small, "bob")
    linked(weights(office))
    small.load("ada")
    assert small.resident() == ("ada",)
    assert asked(small, "ada") == before
    with Coterie.open(office, Options(near_bytes=2 * ONE_EXPERT)) as both:
        both.pin("ada")
        made_private(weights(office))
        assert asked(both, "ada") == before


def test_who_waits_while_a_file_is_touched_is_answered(office: Path) -> None:
    """Asked while the expert is there, which then goes for another one, and comes in again."""
    with Coterie.open(office, Options(near_bytes=ONE_EXPERT)) as coterie:
        before = {name: asked(coterie, name) for name in ("ada", "bob")}
        waiting = [coterie.submit(Query.text(PROMPT, name)) for name in ("bob", "ada", "bob", "ada")]
        linked(weights(office))
        linked(weights(office, "bob"))
        answers = {}
        while not coterie.idle:
            answers |= {chunk.request_id: chunk.answer for chunk in coterie.step() if chunk.last}
    assert [answers[one].token_ids for one in waiting] == [before[name] for name in ("bob", "ada", "bob", "ada")]


def test_who_has_been_there_all_along_needs_no_file(office: Path, small: Coterie) -> None:
    before = asked(small, "ada")
    model = small.models["ada"]
    linked(weights(office))
    assert asked(small, "ada") == before
    assert small.models["ada"] is model


ASKING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"sampling": SamplingParams(temperature=0.9, seed=5)},
    "penalised": {"sampling": SamplingParams(temperature=0.9, seed=5), "choice": ChoiceParams(presence_penalty=1.5)},
    "stopped": {"stop": ("never said",)},
    "with logprobs": {"choice": ChoiceParams(top_logprobs=2)},
    "scored": {"choice": ChoiceParams(top_logprobs=0, score_prompt=True)},
}


def gone_while_asked(small: Coterie, **settings: Any) -> tuple[str, str]:
    """Two long answers of two experts, so far that the first has said something and is not in memory."""
    both = [
        Query((Message("user", "hello"),), name, max_tokens=60, ignore_end=True, **settings) for name in ("ada", "bob")
    ]
    asking, other = map(small.submit, both)
    running, steps = small.parts.engine.queue.running, 0
    while not (small.resident() == ("bob",) and [s for s in running.get("ada", {}).values() if s.first_token_s]):
        small.step()
        steps += 1
        assert steps < 1000
    return asking, other


def ended(small: Coterie) -> dict[str, Chunk]:
    last = {}
    while not small.idle:
        last.update({chunk.request_id: chunk for chunk in small.step() if chunk.last})
    return last


@pytest.mark.parametrize("how", [how for how in ASKING if how != "scored"])
def test_who_runs_goes_on_where_the_weights_are_the_same(office: Path, small: Coterie, how: str) -> None:
    """Whatever was said is drawn once more, and not said again."""
    expected = [small.ask(Query((Message("user", "hello"),), "ada", max_tokens=60, ignore_end=True, **ASKING[how]))]
    asking, other = gone_while_asked(small, **ASKING[how])
    linked(weights(office))
    last = ended(small)
    assert last[other].answer
    answer = last[asking].answer
    assert answer
    assert (answer.token_ids, answer.text) == (expected[0].token_ids, expected[0].text)
    assert answer.logprobs == expected[0].logprobs
    small.parts.engine.check_integrity()


@pytest.mark.parametrize("how", ASKING)
def test_an_answer_is_never_by_two_weights(office: Path, small: Coterie, tmp_path: Path, how: str) -> None:
    """Who would have said something else is told, and so is whose choice cannot be made again."""
    asking, other = gone_while_asked(small, **ASKING[how])
    path, others = weights(office), weights(write_expert(tmp_path / "other", 7).parent, "other")
    times = path.stat()
    if how != "scored":
        shutil.copyfile(others, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    last = ended(small)
    assert isinstance(last[asking].error, TransferError)
    assert "changed while it answered" in str(last[asking].error)
    assert last[other].answer
    assert asked(small, "ada")
    small.parts.engine.check_integrity()


def test_an_adapter_is_read_again_and_its_base_stays(tmp_path: Path) -> None:
    base = write_expert(tmp_path / "office" / "base", 1)
    for seed, name in enumerate(("sql", "tax")):
        write_adapter_of(base, tmp_path / "office" / name, ("q_proj", "up_proj"), seed)
    with Coterie.open(tmp_path / "office") as coterie:
        before = {name: asked(coterie, name) for name in ("sql", "tax", "base")}
        coterie.unload("sql")
        for name in before:
            linked(weights(tmp_path / "office", name))
        assert {name: asked(coterie, name) for name in before} == before


def test_files_that_have_gone_are_not_touched(office: Path) -> None:
    model = open_model(office / "ada")
    weights(office).unlink()
    assert not is_touched(model.layout)
