"""Quiet transformers, one thread, and tiny models that are made once per session."""

import functools
import shutil

import pytest
import torch
import transformers
from tests.model import gguf_rows, theirs, tiny
from tests.model.formats import SIZES
from tests.model.runner import BACKENDS

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """A function (row, rope, dtype, seed) -> the folder of that model, saved once."""
    saved = {}

    def get(row, rope="default", dtype="fp32", seed=0):
        key = (row, rope, dtype, seed)
        if key not in saved:
            folder = tmp_path_factory.mktemp("-".join(map(str, key)))
            saved[key] = tiny.save(tiny.make(row, rope, seed), folder, dtype)
        return saved[key]

    return get


@pytest.fixture(scope="session")
def theirs_of(folder_of):
    """A function (row, rope, dtype) -> what transformers says about that model, asked once."""

    @functools.cache
    def get(row, rope="default", dtype="fp32"):
        return theirs.ask(folder_of(row, rope, dtype), dtype)

    return get


@pytest.fixture
def make_backend():
    """A function (name, model, ...) -> a backend of runner.BACKENDS, closed after the test."""
    made = []

    def make(name, *arguments, **options):
        made.append(BACKENDS[name](*arguments, **options))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.fixture(scope="session")
def wide_once(tmp_path_factory):
    """A function (row, type) -> a tiny folder of it, with rows of whole groups, made once."""

    @functools.cache
    def get(row, dtype):
        tiny.FAMILY_ROWS["wide"] = (tiny.FAMILY_ROWS[row][0], {**tiny.FAMILY_ROWS[row][1], **SIZES})
        try:
            return tiny.save(tiny.make("wide"), tmp_path_factory.mktemp(row), dtype)
        finally:
            del tiny.FAMILY_ROWS["wide"]

    return get


@pytest.fixture
def folder_like(wide_once, tmp_path):
    """A function (row, type) -> a copy of such a folder, which a test may change."""

    def get(row="llama", dtype="fp32"):
        return shutil.copytree(wide_once(row, dtype), tmp_path / row)

    return get


@pytest.fixture(scope="session")
def quantised_once(wide_once, tmp_path_factory):
    """A function (one that quantises a folder) -> a tiny Llama quantised so, once."""

    @functools.cache
    def get(quantise):
        folder = shutil.copytree(wide_once("llama", "fp32"), tmp_path_factory.mktemp("quantised") / "llama")
        quantise(folder)
        return folder

    return get


@pytest.fixture
def quantised(quantised_once, tmp_path):
    """A function (one that quantises a folder) -> a copy of a folder quantised so, which a test may damage."""
    return lambda quantise: shutil.copytree(quantised_once(quantise), tmp_path / "theirs")


@pytest.fixture(scope="module")
def two_tokens(tmp_path_factory):
    """A tokenizer.json of two tokens."""
    return gguf_rows.save_tokenizer(tmp_path_factory.mktemp("words") / "tokenizer.json")


@pytest.fixture(scope="module")
def gguf_folder_like(tmp_path_factory):
    """A function (row or one of gguf_rows.OWN, rope, type) -> a tiny folder of it."""

    def get(row, rope="default", dtype="bf16", **sizes):
        return gguf_rows.save(tmp_path_factory.mktemp(f"{row}-{rope}"), row, rope, dtype, **sizes)

    return get
