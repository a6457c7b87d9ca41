"""Quiet transformers, one thread, and tiny models that are made once per session."""

import pytest
import torch
import transformers
from tests.model import tiny

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
