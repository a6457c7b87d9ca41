"""Fixtures of the system tests: a folder of tiny random experts, and compositions of them."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from tests.system.adapting import ALL, trained_on
from tests.system.adapting import NAMES as ADAPTERS
from tests.system.serving import served
from tests.system.tiny import CONFIG, MEASURED, write_adapter, write_expert

from coterie.api import Coterie
from coterie.bench.experts import random_experts
from coterie.bench.peers.gguf_file import write_gguf
from coterie.models.model import Model

NAMES = ("ada", "bob", "cyd", "dan")


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept from one start to the next is kept for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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


@pytest.fixture(scope="module")
def url(composition: Path) -> Iterator[str]:
    """Where the four are served; modules that serve something else have a fixture of their own."""
    with served(Coterie.open(composition)) as found:
        yield found


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, so that what is left behind can be seen."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of a tiny Llama, as the benches' --shape takes one."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """One for all: to make a client takes longer than to ask."""
    with httpx.Client() as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's own, of a module that serves at `url`."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


MANY = """
name = "many"
[router]
kind = "llm"
config = "./config.json"
question = "{prompt}"
max_tokens = 3
fallback = "e-0"
[[expert]]
name = "e-{i}"
config = "./config.json"
count = 12
"""


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve experts and a router of one shape, without bytes."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 256}))
    (folder / "c.toml").write_text(MANY)
    return folder / "c.toml"


@pytest.fixture(scope="module")
def measured() -> Iterator[Model]:
    """A random model, as benches measure one of the user's own."""
    with random_experts(MEASURED, 1) as (model,):
        yield model


@pytest.fixture(scope="module")
def measured_gguf(measured: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a GGUF file, where llama.cpp can measure it."""
    pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[peers]'")
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp is not installed: pip install 'coterie[peers]'")
    path = tmp_path_factory.mktemp("file") / "tiny-F32.gguf"
    write_gguf(measured, path, "F32")
    return path


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three adapters of it side by side, of which two have one architecture."""
    root = tmp_path_factory.mktemp("office")
    write_expert(root / "base", 1)
    for seed, name in enumerate(ADAPTERS):
        trained_on(write_adapter(root / name, ALL[: 4 + 3 * (seed > 0)], seed=seed), "/home/somebody/base")
    return root


@pytest.fixture
def office(tmp_path: Path) -> Path:
    """A folder of two experts, into which more may come while it is served."""
    for seed, name in enumerate(("ada", "bob")):
        write_expert(tmp_path / "office" / name, seed)
    return tmp_path / "office"
