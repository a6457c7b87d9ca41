"""Quiet transformers, one thread, and tiny models that are made once per session."""

import functools

import pytest
import torch
import transformers
from tests.model import theirs, tiny
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
