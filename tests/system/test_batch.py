"""`coterie batch`: a file of requests, answered in process, with errors as rows, and gone on with after an end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.model.test_tool_templates import HERMES
from tests.system.commands import refused, run
from tests.system.scripted import write_scripted
from tests.system.tiny import write_reranker

from coterie.api import Chunk, Coterie, Query
from coterie.api.ready import Ready
from coterie.cli import batch
from coterie.cli.batch import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, _done
from coterie.core.errors import CapacityError, TransferError

SAYS = {"one": ["It", " is", " four."], "two": ["So", " it", " is."]}
ASKED = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("said")
    for name, pieces in SAYS.items():
        write_scripted(root / name, pieces, HERMES)
    return root


def row(number: int, url: str = CHAT, **body: object) -> dict:
    asked = {"messages": ASKED} if url == CHAT else {"prompt": "x\n"}
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": {"model": "one", **asked, **body}}


def save(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def read(path: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(one["error"] is None and one["id"] == f"batch_req_{one['custom_id']}" for one in rows)
    found = {one["custom_id"]: one["response"] for one in rows}
    assert len(found) == len(rows)
    return found


def test_each_request_has_a_row(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "AT_ONCE", 3)
    rows = [row(number, CHAT if number % 3 else COMPLETIONS, model=list(SAYS)[number % 2]) for number in range(9)]
    bad = [
        (row(20, temprature=1), 400, "did you mean temperature"),
        (row(21, model="eve"), 404, "eve"),
        (row(22, stream=True), 400, "[stream] is true"),
        (row(23, "/v1/nothing"), 400, "[url] is '/v1/nothing'"),
        ({"custom_id": "r24", "url": CHAT}, 400, "[body]"),
        (row(25, COMPLETIONS, prompt=[5, 9999], n=3), 400, "9999"),
    ]
    several = [row(30, n=3, seed=4), row(31, COMPLETIONS, prompt=["x\n", "y\n"], n=2, logprobs=1)]
    asked = save(tmp_path / "in.jsonl", [*rows[:4], *[one for one, _, _ in bad], *several, *rows[4:]])
    told = run("batch", root, asked, tmp_path / "out.jsonl")
    assert (told.exit_code, "11 answered, 6 failed, 0 were there" in told.stdout) == (1, True)
    again = run("batch", root, asked, tmp_path / "out.jsonl")
    assert (again.exit_code, "0 answered, 0 failed, 17 were there (6 failed)" in again.stdout) == (1, True)
    found = read(tmp_path / "out.jsonl")
    for one in rows:
        got = found[one["custom_id"]]
        (choice,) = got["body"]["choices"]
        text = choice["text"] if one["url"] == COMPLETIONS else choice["message"]["content"]
        assert (got["status_code"], text) == (200, "".join(SAYS[one["body"]["model"]]))
    for one, status, words in bad:
        got = found[one["custom_id"]]
        assert (got["status_code"], words in got["body"]["error"]["message"]) == (status, True), got
    assert [choice["index"] for choice in found["r30"]["body"]["choices"]] == [0, 1, 2]
    assert len(found["r31"]["body"]["choices"]) == 4
    assert found["r31"]["body"]["choices"][3]["logprobs"]["tokens"][0] == "It"


def test_vectors_and_scores_are_asked_for_too(root: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for name in SAYS:
        (tmp_path / "all" / name).symlink_to(root / name)
    write_reranker(tmp_path / "all" / "judge", 3)
    pairs = {"model": "judge", "query": "what?", "documents": ["this", "that", "those"]}
    vectors = {"model": "one", "input": ["47 + 85", "x"], "dimensions": 4}
    rows = [
        {"custom_id": "v", "url": EMBEDDINGS, "body": vectors},
        {"custom_id": "too many", "url": EMBEDDINGS, "body": {**vectors, "dimensions": 4096}},
        {"custom_id": "s", "url": RERANK, "body": {**pairs, "return_documents": True, "top_n": 2}},
        {"custom_id": "no judge", "url": RERANK, "body": {**pairs, "model": "one"}},
        row(1),
    ]
    told = run("batch", tmp_path / "all", save(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert (told.exit_code, "3 answered, 2 failed, 0 were there" in told.stdout) == (1, True)
    found = read(tmp_path / "out.jsonl")
    with Coterie.open(tmp_path / "all") as coterie:
        wanted = coterie.embed(vectors["input"], "one", dimensions=4)
        best = coterie.rerank("what?", pairs["documents"], "judge", top_n=2)
    got = [one["embedding"] for one in found["v"]["body"]["data"]]
    np.testing.assert_array_equal(np.array(got, np.float32), wanted)
    results = [(one["index"], one["relevance_score"], one["document"]["text"]) for one in found["s"]["body"]["results"]]
    assert results == [(one.index, one.score, pairs["documents"][one.index]) for one in best]
    for name, words in (("too many", "[dimensions] is 4096"), ("no judge", "[one] was not made to score")):
        assert found[name]["status_code"] == 400
        assert words in found[name]["body"]["error"]["message"]


def test_what_no_request_is_to_blame_for_is_tried_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind all others: one that is refused for want of memory, one whose read fails; and one that always fails."""
    monkeypatch.setattr(batch, "PAUSES_S", (0.0, 0.0))
    submit, step, tried, failing = Coterie.submit, Coterie.step, list[str](), dict[str, str]()

    def short_of_memory(coterie: Coterie, query: Query | Ready, more: int = 0) -> str:
        text = query.messages[0].content
        tried.append(text)
        if text in ("never\n", "first\n") and (text == "never\n" or tried.count(text) == 1):
            raise CapacityError("kv", "it", 2, 1, ["ask later"])
        request_id = submit(coterie, query, more)
        failing.update({request_id: text} if text == "read\n" and tried.count(text) <= 2 else {})
        return request_id

    def fails(coterie: Coterie, within_s: float | None = None) -> list[Chunk]:
        error = TransferError("disk", "a read failed")
        return [
            Chunk(one.request_id, "one", error=error) if one.last and one.request_id in failing else one
            for one in step(coterie, within_s)
        ]

    monkeypatch.setattr(Coterie, "submit", short_of_memory)
    monkeypatch.setattr(Coterie, "step", fails)
    prompts = ["never\n", "first\n", "read\n", "well\n"]
    rows = [row(number, COMPLETIONS, prompt=prompt) for number, prompt in enumerate(prompts)]
    told = run("batch", root, save(tmp_path / "in.jsonl", [*rows, row(4, model="eve")]), tmp_path / "out.jsonl")
    assert (told.exit_code, "3 answered, 2 failed, 0 were there\n" in told.stdout) == (1, True)
    assert [tried.count(prompt) for prompt in prompts] == [3, 2, 3, 1]
    found = read(tmp_path / "out.jsonl")
    assert [found[f"r{number}"]["status_code"] for number in range(5)] == [503, 200, 200, 200, 404]


def test_it_goes_on_where_it_was_ended(root: Path, tmp_path: Path) -> None:
    asked, path = save(tmp_path / "in.jsonl", [row(number) for number in range(4)]), tmp_path / "out.jsonl"
    run("batch", root, asked, path)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole[0] + whole[1] + whole[2][:-9])
    told = run("batch", root, asked, path)
    assert "2 answered, 0 failed, 2 were there" in told.stdout
    assert path.read_bytes().startswith(whole[0] + whole[1])
    assert read(path).keys() == {"r0", "r1", "r2", "r3"}
    last = run("batch", root, asked, path)
    assert (last.exit_code, "0 answered, 0 failed, 4 were there\n" in last.stdout) == (0, True)


def test_ctrl_c_says_what_is_left(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "AT_ONCE", 2)
    asked, path = save(tmp_path / "in.jsonl", [row(0, model="eve"), *map(row, range(1, 7))]), tmp_path / "out.jsonl"
    step = Coterie.step

    def pressed(coterie: Coterie, within_s: float | None = None) -> list[Chunk]:
        if path.read_bytes().count(b"\n") >= 3:
            raise KeyboardInterrupt
        return step(coterie, within_s)

    with monkeypatch.context() as patched:
        patched.setattr(Coterie, "step", pressed)
        told = run("batch", root, asked, path)
    assert told.exit_code != 0
    count = len(read(path))
    assert 3 <= count < 7
    assert f"{count - 1} answered, 1 failed, 0 were there, {7 - count} are left: run it again" in told.stdout
    assert f"{7 - count} answered, 0 failed, {count} were there (1 failed)\n" in run("batch", root, asked, path).stdout


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('{"custom_id": "a"}\n\n{"custom_id": "a"}', "line 3] has the custom_id 'a', as one before"),
        ("[]", "line 1] has the custom_id None"),
        ('{"custom_id": ["a"]}', "line 1] has the custom_id ['a'];"),
        ("{", "line 1] is not JSON"),
    ],
)
def test_files_that_are_none(root: Path, tmp_path: Path, lines: str, words: str) -> None:
    (tmp_path / "in").write_text(lines)
    refused(run("batch", root, tmp_path / "in", tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "other", ["3\n", "notes without an end of line", '{"custom_id": "r1"}\n', '{"custom_id": "r1"}']
)
def test_a_file_of_something_else_is_not_written_to(root: Path, tmp_path: Path, other: str) -> None:
    asked, path = save(tmp_path / "in.jsonl", [row(1)]), tmp_path / "other"
    path.write_text(other)
    refused(run("batch", root, asked, path), "has lines that are no answers of a batch")
    assert path.read_text() == other


def test_a_line_cut_at_any_byte_is_asked_again(root: Path, tmp_path: Path) -> None:
    asked, path = save(tmp_path / "in.jsonl", [row(1)]), tmp_path / "out.jsonl"
    run("batch", root, asked, path)
    whole = path.read_bytes()
    for kept in (1, 12, 30, len(whole) - 1):
        path.write_bytes(whole + whole[:kept])
        assert _done(path) == {"r1": 200}
        assert path.read_bytes() == whole
    path.write_bytes(whole[:5])
    assert (_done(path), path.read_bytes()) == ({}, b"")


def test_requests_are_not_their_own_answers(root: Path, tmp_path: Path) -> None:
    """Nothing is taken from them, whatever they end with."""
    asked = save(tmp_path / "in.jsonl", [row(1)])
    asked.write_text(asked.read_text().rstrip())
    before = asked.read_bytes()
    (tmp_path / "link").symlink_to(asked)
    for same in (asked, tmp_path / "link"):
        refused(run("batch", root, asked, same), "is the file of requests itself")
    assert asked.read_bytes() == before


def test_files_that_cannot_be(root: Path, tmp_path: Path) -> None:
    """Before anything is loaded."""
    asked = save(tmp_path / "in.jsonl", [row(1)])
    refused(run("batch", root, tmp_path / "none", tmp_path / "out"), "none] cannot be read or written: No such file")
    refused(run("batch", root, asked, tmp_path / "none" / "out"), "out] cannot be read or written: No such file")
    refused(run("batch", root, asked, tmp_path), "cannot be read or written: Is a directory")
    if Path("/dev/full").exists():
        refused(run("batch", root, asked, "/dev/full"), "full] cannot be read or written: No space left")
