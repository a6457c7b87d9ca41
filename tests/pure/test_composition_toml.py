"""TOML that is written is read back as it was."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.composition import composition as composition_module
from coterie.composition.toml import to_toml

FILES = [
    *(Path(composition_module.__file__).parent / "presets").glob("*/composition.toml"),
    *(Path(__file__).parents[2] / "examples").glob("*.toml"),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = TEXT | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.booleans() | st.lists(TEXT)
KEYS = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
TABLE = st.dictionaries(KEYS, PLAIN, max_size=5)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_composition_files(file):
    values = tomllib.loads(file.read_text())
    assert tomllib.loads(to_toml(values)) == values


@given(st.dictionaries(KEYS, PLAIN | TABLE | st.lists(TABLE | st.dictionaries(KEYS, TABLE), min_size=1)))
def test_any_tables(values):
    assert tomllib.loads(to_toml(values)) == values
