"""Vectors of a router's examples are kept on disk: made once, made anew where a file is damaged or no longer true."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.system.tiny import write_expert

from coterie.api import Coterie, Query, vector_cache
from coterie.api.assemble import rounded_for
from coterie.api.vector_cache import VectorCache, cache_folder
from coterie.checkpoint.sentence import Embedding
from coterie.models.model import AUTO, open_model

ASKED = ("47 + 86", "sing to me!")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, name in enumerate(("router", "ada", "bob")):
        write_expert(tmp_path / name, seed)
    (tmp_path / "c.toml").write_text(
        'name = "c"\n[router]\nkind = "knn"\ncheckpoint = "router"\nfallback = "bob"\n'
        '[[expert]]\nname = "ada"\ncheckpoint = "ada"\nexamples = ["12 + 30", "47 + 85", "9 + 1"]\n'
        '[[expert]]\nname = "bob"\ncheckpoint = "bob"\nexamples = ["write a poem", "a song of rain"]\n'
    )
    return tmp_path / "c.toml"


def opened(path: Path) -> tuple[int, list[object]]:
    """How many texts were asked at start, and the routes of some prompts."""
    with Coterie.open(path) as coterie:
        asked = coterie.parts.engine.metrics.submitted
        return asked, [coterie.route(Query.text(text)) for text in ASKED]


def the_file() -> Path:
    (file,) = cache_folder().iterdir()
    return file


def test_examples_are_asked_once(path: Path) -> None:
    first, routes = opened(path)
    assert (first, the_file().suffix) == (5, ".vectors")
    assert opened(path) == (1, routes)
    path.write_text(path.read_text().replace('"9 + 1"', '"9 + 1", "3 + 4"'))
    assert opened(path)[0] == 2  # the first, and the new one
    assert opened(path)[0] == 1
    path.write_text(path.read_text().replace('"12 + 30"', '"1 + 1", "12 + 30"'))
    assert opened(path)[0] == 2  # the new one, which is the first now, and one of those that are kept


@pytest.mark.parametrize("damage", ["cut", "empty", "turned", "zeros"])
def test_a_file_that_is_damaged_is_made_anew(damage: str, path: Path) -> None:
    _, routes = opened(path)
    whole = the_file().read_bytes()
    turned = whole[:-1] + bytes([whole[-1] ^ 1])
    the_file().write_bytes({"cut": whole[:-20], "empty": b"", "turned": turned, "zeros": bytes(len(whole))}[damage])
    assert opened(path) == (5, routes)
    assert opened(path) == (1, routes)


def test_other_weights_have_a_file_of_their_own(path: Path) -> None:
    opened(path)
    (path.parent / "router").rename(path.parent / "before")
    write_expert(path.parent / "router", 7)
    assert opened(path)[0] == 5
    assert len(list(cache_folder().iterdir())) == 2


def test_what_is_no_longer_true_does_not_count(path: Path) -> None:
    _, routes = opened(path)
    model = rounded_for(open_model(path.parent / "router"), AUTO, "cpu")
    kept = VectorCache(model, Embedding("mean"), "cpu", cache_folder())
    wrong = {key: tuple(np.negative(row).tolist()) for key, row in kept.read().items()}
    assert len(wrong) == 5
    kept.write(wrong, {})
    assert opened(path) == (5, routes)
    assert opened(path) == (1, routes)
    kept.write(dict(list(wrong.items())[1:]), {})  # of the first example nothing is kept
    assert opened(path) == (5, routes)


def test_where_nothing_can_be_kept_examples_are_asked_each_time(path: Path) -> None:
    cache_folder().parent.mkdir(parents=True)
    cache_folder().write_text("a file where a folder should be")
    assert (opened(path)[0], opened(path)[0]) == (5, 5)


def test_who_has_no_home_asks_each_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert (opened(path)[0], opened(path)[0]) == (5, 5)


def test_files_and_rows_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_cache, "MAX_FILES", 2)
    monkeypatch.setattr(vector_cache, "MAX_ROWS", 3)
    model = rounded_for(open_model(path.parent / "router"), AUTO, "cpu")
    files = [VectorCache(model, Embedding("mean"), device, cache_folder()) for device in ("a", "b", "c")]
    rows = {VectorCache.key_of([i]): (float(i), 1.0) for i in range(4)}
    for age, one in enumerate(files):
        one.write(dict(list(rows.items())[2:]), dict(list(rows.items())[:2]))
        for file in cache_folder().iterdir():
            os.utime(file, (age, age)) if file == one._path else None
    assert [len(one.read()) for one in files] == [0, 3, 3]
    assert list(files[2].read().values()) == [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]
