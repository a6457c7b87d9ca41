"""Fixtures of the system tests: a folder of tiny random experts, and compositions of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.system.tiny import write_expert

NAMES = ("ada", "bob", "cyd", "dan")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four experts of one architecture and no router."""
    root = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(NAMES):
        write_expert(root / name, seed)
    return root


@pytest.fixture(scope="session")
def composition(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same four behind a router of rules."""
    path = tmp_path_factory.mktemp("composition") / "composition.toml"
    rules = "".join(f'[[router.rule]]\nexpert = "{name}"\nkeywords = ["{name}"]\n' for name in NAMES[:3])
    experts = "".join(
        f'[[expert]]\nname = "{n}"\ncheckpoint = "{folder / n}"\ndescription = "random {n}"\n' for n in NAMES
    )
    path.write_text(f'name = "four"\n[router]\nkind = "rules"\nfallback = "dan"\n{rules}{experts}')
    return path
