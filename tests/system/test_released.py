"""`benchmarks.released` on a tiny random model: its base is what transformers makes of it; questions."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.released import Sums, main, windows_of, write_plain
from tests.pure.vocabularies import byte_level
from tests.system.test_import_gguf import write

from coterie.bench.quality import log_softmax
from coterie.bench.step import on_cpu
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.models.model import open_model

TEXT = "It's 12 in XMLHttp, and 345 words of a text that was made up here.\n" * 3
QUESTIONS = [
    {"prompt": "Words of ", "choices": ["a text", "12"], "answer": 0},
    {"prompt": "Words of ", "choices": ["a text", "12"], "answer": 1},
]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    return write(tmp_path, "qwen2", byte_level("qwen2", eos_token_id=2002), "F32")


def measured(capsys: pytest.CaptureFixture[str], model: Path, *options: str) -> dict[str, Any]:
    """What is printed last; its tables have a line for each row."""
    main([str(model), "--text", str(model.parent / "text.txt"), "--tokens", "60", "--window", "24", *options])
    printed = capsys.readouterr().out
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    for row in (*found["rows"], *found["questions"]):
        assert f"\n| {row} | " in printed
    return found


def test_a_file_beside_what_it_means_and_packed(gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = ("--packing", "int8", "--packing", "int4", "--questions", str(gguf.parent / "questions.jsonl"))
    peers = [name for name, module in (("llama.cpp", "llama_cpp"), ("transformers", "torch")) if _has(module)]
    rows = measured(capsys, gguf, *packed, *(word for peer in peers for word in ("--peer", peer)))
    found, asked = rows["rows"], rows["questions"]
    assert {row["tokens"] for row in found.values()} == {60}
    assert (found["float32"]["kl_divergence"], found["float32"]["top1_agreement"]) == (0, 1)
    if "transformers" in peers:
        assert found["transformers"]["kl_divergence"] < 1e-9
        assert found["transformers"]["perplexity"] == pytest.approx(found["float32"]["perplexity"], rel=1e-5)
    if "llama.cpp" in peers:
        assert found["llama.cpp"]["largest_difference"] < 0.05
    assert found["imported"]["kl_divergence"] == 0
    assert "imported, int8 activations" not in found  # nothing of it is packed
    assert 0 < found["int8"]["kl_divergence"] < found["int4"]["kl_divergence"]
    assert found["int8"]["kl_divergence"] < found["int8, int8 activations"]["kl_divergence"]
    # Two questions that differ in nothing but which choice is right: one of them is answered right, whoever answers.
    assert {(row["accuracy"], row["a_character"], row["questions"]) for row in asked.values()} == {(0.5, 0.5, 2)}


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def test_logits_are_those_of_a_whole_prompt(gguf: Path, tmp_path: Path) -> None:
    """In pieces of any length, to the bit."""
    folder, ids, found = tmp_path / "float32", list(range(17)), []
    write_plain(gguf, gguf.parent / "theirs", folder)
    for piece in (1, 5, 17, 128):
        loaded = on_cpu(open_model(folder), "device", 1, 32)
        try:
            found.append(np.concatenate(list(loaded.logits(ids, piece))))
        finally:
            loaded.close()
    assert found[0].shape[0] == 17
    assert all(np.array_equal(found[0], one) for one in found[1:])


def test_sums_by_hand() -> None:
    base, ours = np.log(np.float32([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2]])), np.log(np.float32([[0.25, 0.5, 0.25]] * 2))
    sums = Sums()
    sums.add(ours + 3, base, np.array([1]))
    row = sums.to_dict()
    assert row["perplexity"] == pytest.approx(2)
    divergences = 0.5 * np.log(2) - 0.25 * np.log(2), 0.2 * np.log(0.8) + 0.6 * np.log(1.2) + 0.2 * np.log(0.8)
    assert row["kl_divergence"] == pytest.approx(sum(divergences) / 2, rel=1e-5)
    assert row["top1_agreement"] == 0.5
    assert row["largest_difference"] == pytest.approx((3 + np.log(2)) / -np.log(0.2), rel=1e-5)
    assert np.allclose(log_softmax(ours + 7), ours, atol=1e-6)


def test_windows_have_what_stands_before_a_text(gguf: Path, tmp_path: Path) -> None:
    main(
        [
            str(gguf),
            "--text",
            str(gguf.parent / "text.txt"),
            "--tokens",
            "9",
            "--window",
            "4",
            "--folder",
            str(tmp_path),
        ]
    )
    windows = windows_of(tmp_path / gguf.stem / "imported", gguf.parent / "text.txt", 9, 4)
    assert [len(ids) for ids in windows] == [4, 4]  # one token has nothing that comes next
    ids = list(Tokenizer.from_folder(tmp_path / gguf.stem / "imported").encode(TEXT))
    assert [token for window in windows for token in window] == ids[:8]
