"""Composition files and folders that are right: what they load to, and the published schema."""

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from coterie.composition import composition as composition_module
from coterie.composition.composition import load_composition
from coterie.composition.routers.language import LANGUAGES, guess_language
from coterie.composition.routing import ROUTERS
from coterie.composition.schema import ROUTER, json_schema, schema_text
from coterie.core.errors import CompositionError, NotFoundError

PACKAGE = Path(composition_module.__file__).parent

RULES = """
name = "small"
description = "for tests"
[router]
kind = "rules"
fallback = "general"
match = "weight"
threshold = 0.5
margin = 0.25
[[router.rule]]
name = "sums"
expert = "arithmetic"
keywords = ["plus", "added to"]
weight = 2
[[router.rule]]
expert = "german"
language = "de"
min_chars = 5
max_chars = 100
[[router.rule]]
expert = "arithmetic"
pattern = "[0-9] *[+-] *[0-9]"
[[expert]]
name = "arithmetic"
checkpoint = "experts/arithmetic"
description = "adds"
[[expert]]
name = "german"
checkpoint = "experts/german"
[[expert]]
name = "general"
checkpoint = "experts/general"
[[expert]]
name = "llama-{i}"
config = "llama-2-7b"
count = 150
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("arithmetic", "german", "general"):
        expert = tmp_path / "experts" / name
        expert.mkdir(parents=True)
        (expert / "config.json").write_text("{}")
    (tmp_path / "composition.toml").write_text(RULES)
    return tmp_path


def test_file_loads(folder):
    composition = load_composition(str(folder / "composition.toml"))
    assert composition.name == "small"
    assert composition.root == folder
    assert composition.names[:3] == ("arithmetic", "german", "general")
    assert composition.names[3:] == tuple(f"llama-{i}" for i in range(150))
    assert composition.expert("arithmetic").checkpoint == folder / "experts" / "arithmetic"
    assert composition.expert("llama-7").config == "llama-2-7b"
    assert composition.expert("llama-7").checkpoint is None
    router = composition.router
    assert (router.kind, router.fallback, router.match) == ("rules", "general", "weight")
    assert (router.threshold, router.margin) == (0.5, 0.25)
    assert [rule.expert for rule in router.rules] == ["arithmetic", "german", "arithmetic"]
    assert router.rules[0].name == "sums"


def test_folder_with_a_composition_file_is_that_file(folder):
    assert load_composition(str(folder)) == load_composition(str(folder / "composition.toml"))


def test_folder_of_checkpoints(folder):
    (folder / "experts" / "notes").mkdir()
    composition = load_composition(str(folder / "experts"))
    assert composition.names == ("arithmetic", "general", "german")
    assert composition.router is None


def test_checkpoint_folder_is_a_composition_of_one(folder):
    composition = load_composition(str(folder / "experts" / "german"))
    assert composition.name == "german"
    assert composition.names == ("german",)
    assert composition.experts[0].checkpoint == folder / "experts" / "german"


def test_config_file_is_found_from_the_file(folder):
    (folder / "shape.json").write_text("{}")
    (folder / "composition.toml").write_text('name = "x"\n[[expert]]\nname = "a"\nconfig = "shape.json"\n')
    assert load_composition(str(folder)).experts[0].config == str(folder / "shape.json")


def test_preset_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(composition_module, "PRESETS", tmp_path)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "composition.toml").write_text('name = "small"\n[[expert]]\nname = "a"\nconfig = "l"\n')
    assert load_composition("small").name == "small"
    with pytest.raises(NotFoundError, match="a folder or small"):
        load_composition("demoo")


def test_unknown_expert_names_the_nearest(folder):
    composition = load_composition(str(folder))
    with pytest.raises(NotFoundError, match="did you mean arithmetic"):
        composition.expert("arithmatic")
    with pytest.raises(NotFoundError, match="did you mean arithmetic"):
        composition.expert("Arith")  # a part of a name, which files of others make long
    with pytest.raises(NotFoundError, match=r"the experts are arithmetic, .* and 141 more"):
        composition.expert("zzz")


def test_an_id_is_nothing_to_who_has_no_home(monkeypatch):
    def no_home() -> None:
        raise RuntimeError("Could not determine home directory.")

    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(CompositionError, match="set HF_HOME"):
        load_composition("team/model")


def hub_model(cache, commit="0123abc"):
    model = cache / "models--some-owner--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return snapshot


@pytest.mark.parametrize("line", ["", 'revision = "main"', 'revision = "0123abc"'])
def test_hugging_face_id_from_the_cache(tmp_path, monkeypatch, line):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    snapshot = hub_model(tmp_path / "home" / "hub")
    file = tmp_path / "c.toml"
    file.write_text(f'name = "x"\n[[expert]]\nname = "a"\ncheckpoint = "some-owner/tiny"\n{line}\n')
    assert load_composition(str(file)).experts[0].checkpoint == snapshot


def test_the_base_of_an_adapter_is_where_it_says(tmp_path, monkeypatch):
    """By a path from the file, whole, as a folder beside the adapter, or a model in the cache by its revision."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    snapshot, adapter = hub_model(tmp_path / "home" / "hub"), tmp_path / "adapters" / "sql"
    for folder in (tmp_path / "models" / "tiny", adapter.parent / "beside"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    adapter.mkdir()
    file = tmp_path / "c.toml"
    file.write_text('name = "x"\n[[expert]]\nname = "sql"\ncheckpoint = "adapters/sql"\n')
    for named, wanted in (
        ("models/tiny", tmp_path / "models" / "tiny"),
        (str(tmp_path / "models" / "tiny"), tmp_path / "models" / "tiny"),
        ("/somebody/elses/beside", adapter.parent / "beside"),
        ("some-owner/tiny", snapshot),
    ):
        text = {"base_model_name_or_path": named, "revision": "0123abc" if named == "some-owner/tiny" else None}
        (adapter / "adapter_config.json").write_text(json.dumps(text))
        (expert,) = load_composition(str(file)).experts
        assert (expert.checkpoint, expert.base) == (adapter, wanted)


def test_published_schema_is_made_from_the_table():
    assert (PACKAGE / "schema.json").read_text() == schema_text(), "run: python -m coterie.composition.schema"


def test_schema_accepts_what_loads():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.validate(tomllib.loads(RULES), json_schema())
    for file in (PACKAGE / "presets").glob("*/composition.toml"):
        jsonschema.validate(tomllib.loads(file.read_text()), json_schema())


def test_every_router_of_the_schema_can_be_made():
    assert set(ROUTER.variants) == set(ROUTERS)


def test_schema_is_json_and_names_every_router():
    assert [variant["properties"]["kind"]["const"] for variant in _router(json.loads(schema_text()))] == list(ROUTERS)


def _router(schema):
    return schema["properties"]["router"]["oneOf"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the sum of these two numbers?", "en"),
        ("Was ist die Summe von diesen Zahlen?", "de"),
        ("Quelle est la somme de ces deux nombres, et pour qui ?", "fr"),
        ("¿Cuál es la suma de estos números para el maestro?", "es"),
        ("Qual è la somma degli numeri che sono nel libro?", "it"),
        ("Você não sabe qual é a soma dos números, mas quem sabe?", "pt"),
        ("Wat is het resultaat van deze som en hoe weet je dat?", "nl"),
        ("これは何ですか、日本語", "ja"),
        ("这是什么意思", "zh"),
        ("이것은 무엇입니까", "ko"),
        ("Что это такое?", "ru"),
        ("Τι είναι αυτό;", "el"),
        ("מה זה", "he"),
        ("ما هذا", "ar"),
        ("यह क्या है", "hi"),
        ("นี่คืออะไร", "th"),
        ("47 + 85 = ?", None),
        ("", None),
        ("xyzzy", None),
    ],
)
def test_language(text, language):
    assert guess_language(text) == language
    assert language is None or language in LANGUAGES
