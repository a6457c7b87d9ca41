"""Composition files that are wrong: each mistake is one sentence with file, key, value and what to change."""

import re
import tomllib

import jsonschema
import pytest

from coterie.composition.composition import load_composition
from coterie.composition.schema import json_schema
from coterie.core.errors import CompositionError, NotFoundError

GOOD = """name = "small"
[router]
kind = "rules"
fallback = "b"
[[router.rule]]
expert = "a"
keywords = ["x"]
[[expert]]
name = "a"
checkpoint = "a"
[[expert]]
name = "b"
config = "llama-2-7b"
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")

    def put(text):
        file = tmp_path / "c.toml"
        file.write_text(text)
        return str(file)

    return put


def test_the_good_one_is_good(write):
    assert load_composition(write(GOOD)).names == ("a", "b")


# (text to replace, its replacement, what the sentence must say); the schema refuses these as well
BY_TABLE = {
    "unknown key": ('name = "small"', 'nam = "small"', r'nam\] nam = "small" is not a known key; did you mean "name"'),
    "key like no other": (
        'name = "small"',
        'name = "s"\nqqq = 1',
        "qqq = 1 is not a known key; the keys here are name",
    ),
    "unknown router key": ("fallback", "fallbck", r'router.fallbck\] .* did you mean "fallback"'),
    "unknown expert key": ('checkpoint = "a"', 'chekpoint = "a"', r"expert\[1\] 'a'.chekpoint.* did you mean \"check"),
    "unknown rule key": ("keywords", "keyword", r'router.rule\[1\].keyword\] .* did you mean "keywords"'),
    "missing name": ('name = "small"', "", "name is missing; add name"),
    "missing kind": ('kind = "rules"', "", "kind is missing; .* rules, lexical"),
    "missing fallback": ('fallback = "b"', "", "router.fallback.* is missing"),
    "missing rule": ('[[router.rule]]\nexpert = "a"\nkeywords = ["x"]', "", "router.rule.* rule is missing"),
    "no experts": (GOOD[GOOD.index("[[expert]]") :], "", "expert is missing"),
    "experts as an empty list": (GOOD, 'name = "x"\nexpert = []\n', "there are no experts; add"),
    "expert as a table": (GOOD, 'name = "x"\n[expert]\nname = "a"\n', "expert = .* is a table, not a list of tables"),
    "name a number": ('name = "small"', "name = 3", "name = 3 is a whole number, not text in quotes"),
    "name a bool": ('name = "small"', "name = true", "is true or false, not text"),
    "name a date": ('name = "small"', "name = 2020-01-01", "is a date or time, not text"),
    "keywords a text": ('["x"]', '"x"', 'keywords = "x" is text, not a list of texts'),
    "keywords of numbers": ('["x"]', "[1]", "is a list, not a list of texts"),
    "no keywords": ('["x"]', "[]", r"keywords = \[\] is empty"),
    "blank keyword": ('["x"]', '["x", " "]', "is empty"),
    "count zero": (
        'config = "llama-2-7b"',
        'config = "l"\ncount = 0',
        "count = 0 is out of range; it must be at least 1",
    ),
    "count a float": ('config = "llama-2-7b"', 'config = "l"\ncount = 1.5', "is a number, not a whole number"),
    "threshold high": ("[router]", "[router]\nthreshold = 1.5", "threshold = 1.5 is out of range; .* at most 1"),
    "threshold low": (
        "[router]",
        "[router]\nthreshold = -0.1",
        "threshold = -0.1 is out of range; it must be at least 0",
    ),
    "prefer_resident high": ("[router]", "[router]\nprefer_resident = 2", "prefer_resident = 2 is out of range"),
    "margin high": ("[router]", "[router]\nmargin = 2", "margin = 2 is out of range"),
    "unknown kind": ('kind = "rules"', 'kind = "magic"', 'kind = "magic" is not a router; use one of rules, lexical'),
    "unknown language": ('keywords = ["x"]', 'language = "xx"', 'language = "xx" is not known; .*use one of en, de'),
    "unknown match": ("[router]", '[router]\nmatch = "last"', 'match = "last" is not known'),
    "rule of no condition": ('keywords = ["x"]', "weight = 1", "there is no condition"),
    "both sources": ('checkpoint = "a"', 'checkpoint = "a"\nconfig = "l"', "checkpoint and config are both given"),
    "no source": ('checkpoint = "a"', "", "none of checkpoint, config is given"),
    "count of a checkpoint": (
        'checkpoint = "a"',
        'checkpoint = "a"\ncount = 2',
        "count = 2 has no meaning without config",
    ),
    "rank of a checkpoint": (
        'checkpoint = "a"',
        'checkpoint = "a"\nrank = 2',
        "rank = 2 has no meaning without config",
    ),
    "unknown packed type": ('config = "llama-2-7b"', 'config = "l"\npacked = "int5"', "use one of int8, int6, int4"),
    "rank zero": ('config = "llama-2-7b"', 'config = "l"\nrank = 0', "rank = 0 is out of range; it must be at least 1"),
    "name with a space": ('name = "a"', 'name = "a b"', 'name = "a b" cannot be a name; use letters'),
    "name with a slash": ('name = "a"', 'name = "a/b"', "cannot be a name"),
    "name with an at": ('name = "a"', 'name = "@a"', "cannot be a name"),
    "name too long": ('name = "a"', f'name = "{"a" * 65}"', "cannot be a name"),
    "alias of nobody's form": (
        'name = "a"',
        'name = "a"\naliases = ["b", "b c"]',
        'aliases = "b c" cannot be a name; use',
    ),
    "alias with a mark at its end": ('name = "a"', 'name = "a"\naliases = ["b:"]', 'aliases = "b:" cannot be a name'),
    "no aliases": ('name = "a"', 'name = "a"\naliases = []', r"aliases = \[\] is empty"),
    "empty name": ('name = "a"', 'name = ""', "is empty"),
    "empty checkpoint": ('checkpoint = "a"', 'checkpoint = ""', "is empty"),
    "unknown sampling key": (
        'checkpoint = "a"',
        'checkpoint = "a"\n[expert.sampling]\ntemprature = 1',
        r"expert\[1\] 'a'.sampling.temprature\] temprature = 1 is not a known key; did you mean \"temperature\"",
    ),
    "temperature high": (
        'checkpoint = "a"',
        'checkpoint = "a"\n[expert.sampling]\ntemperature = 101',
        "temperature = 101 is out of range; it must be at least 0 and at most 100",
    ),
    "top_k a fraction": (
        'checkpoint = "a"',
        'checkpoint = "a"\n[expert.sampling]\ntop_k = 1.5',
        "top_k = 1.5 is a number, not a whole number",
    ),
    "composition name": ('name = "small"', 'name = "sm all"', "cannot be a name"),
}

# what only the whole file, or the disk, can tell
BY_MEANING = {
    "alias of the composition's name": (
        'name = "a"',
        'name = "a"\naliases = ["small"]',
        r"expert 'a'.aliases\] the alias 'small' is also the name of the composition; give each name once",
    ),
    "alias of its own name": ('name = "a"', 'name = "a"\naliases = ["a"]', "'a' is also the name of the expert a"),
    "alias twice": ('name = "a"', 'name = "a"\naliases = ["o/m:t", "o/m:t"]', "'o/m:t' is also an alias of a"),
    "aliases of counted experts": (
        'name = "b"\nconfig = "llama-2-7b"',
        'name = "b-{i}"\nconfig = "l"\ncount = 2\naliases = ["x"]',
        "is also an alias of b-0",
    ),
    "duplicate name": ('name = "b"\nconfig', 'name = "a"\nconfig', "the name 'a' is already taken"),
    "fallback is no expert": ('fallback = "b"', 'fallback = "bb"', "router.fallback.* 'bb' is not an expert"),
    "draft is no expert": ('name = "a"', 'name = "a"\ndraft = "c"', r"expert 'a'.draft\] draft = 'c' is not an expert"),
    "draft of its own": ('name = "a"', 'name = "a"\ndraft = "a"', r"'a'.draft\] an expert cannot be its own draft"),
    "rule's expert is none": ('expert = "a"', 'expert = "c"', r"rule\[1\].expert.* 'c' is not an expert"),
    "no such folder": ('checkpoint = "a"', 'checkpoint = "no"', "checkpoint = 'no': there is no folder"),
    "no such folder or model": (
        'checkpoint = "a"',
        'checkpoint = "x/no"',
        "no folder .* is not in the cache .*download",
    ),
    "bad revision": ('checkpoint = "a"', 'checkpoint = "x/no"\nrevision = "../x"', "cannot be a revision"),
    "folder without config": ('checkpoint = "a"', 'checkpoint = "."', "has no config.json"),
    "no such config": ('config = "llama-2-7b"', 'config = "no.json"', "config = 'no.json': no file"),
    "bad pattern": ('keywords = ["x"]', 'pattern = "("', r"rule 1: pattern = '\(' is not a regular expression"),
    "bad pattern, named": ('keywords = ["x"]', 'name = "r"\npattern = "("', "rule r: pattern"),
    "lengths crossed": ('keywords = ["x"]', "min_chars = 5\nmax_chars = 4", "min_chars = 5 is above max_chars = 4"),
    "adapter and delta": (
        'config = "llama-2-7b"',
        'config = "llama-2-7b"\nrank = 2\ndelta = "int4"',
        "leave one of them",
    ),
    "count without i": ('config = "llama-2-7b"', 'config = "l"\ncount = 2', r'write name = "b-{i}"'),
    "i without count": ('name = "b"\nconfig', 'name = "b{i}"\nconfig', "has no meaning without count"),
    "examples without a knn router": (
        'name = "b"\n',
        'name = "b"\nexamples = ["x"]\n',
        r"expert\[2\] 'b'.examples\] examples have no meaning without a knn router",
    ),
    "nothing may come": (
        'checkpoint = "a"',
        'checkpoint = "a"\n[expert.sampling]\ntop_p = 0',
        r"expert\[1\] 'a'.sampling.top_p\] top_p is 0; allowed is above 0",
    ),
    "nan": ("[router]", "[router]\nthreshold = nan", "threshold = nan is out of range"),
}


@pytest.mark.parametrize("case", [*BY_TABLE, *BY_MEANING])
def test_refused(write, case):
    """In a sentence; what the table of keys knows by the schema too."""
    old, new, sentence = (BY_TABLE | BY_MEANING)[case]
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(CompositionError, match=sentence) as caught:
        load_composition(write(text))
    assert "c.toml" in caught.value.where
    assert caught.value.remedy
    if case in BY_TABLE:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tomllib.loads(text), json_schema())


def test_lexical_router_without_its_file(write):
    text = GOOD.replace('kind = "rules"', 'kind = "lexical"').replace(
        '[[router.rule]]\nexpert = "a"\nkeywords = ["x"]\n', ""
    )
    with pytest.raises(CompositionError, match=r"router.weights.* 'router.npz': no file"):
        load_composition(write(text))


def test_not_toml(write):
    with pytest.raises(CompositionError, match=r"not TOML: .*line 1"):
        load_composition(write("name = \n"))


def test_editors_on_windows(tmp_path):
    """A mark at the beginning, and their line endings; a \\ in a path is TOML's own."""
    text = 'name = "c"\n[[expert]]\nname = "e"\nconfig = "l"\n'
    (tmp_path / "c.toml").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_composition(str(tmp_path / "c.toml")).names == ("e",)


def test_not_utf8(tmp_path):
    (tmp_path / "c.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(CompositionError, match="byte 8 is not UTF-8"):
        load_composition(str(tmp_path / "c.toml"))


def test_missing_file(tmp_path):
    with pytest.raises(NotFoundError, match="no such file or folder"):
        load_composition(str(tmp_path / "no.toml"))


def test_folder_without_experts(tmp_path):
    with pytest.raises(CompositionError, match="no expert: neither this folder"):
        load_composition(str(tmp_path))


def folder_with(folder, file, text="{}"):
    folder.mkdir()
    (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize("beside", [True, False])
def test_folder_of_adapters_without_their_base(beside, tmp_path):
    """Alone or beside checkpoints, as a folder and by its own path; never left aside in silence."""
    mine = folder_with(tmp_path / "mine", "adapter_config.json")
    if beside:
        folder_with(tmp_path / "other", "config.json")
    for match, config in [
        (r"the adapter .*mine does not say what its base is; put it beside", "{}"),
        (r"of/somebody/else'?, but .* and .*/else are no check", '{"base_model_name_or_path": "/of/somebody/else"}'),
    ]:
        (mine / "adapter_config.json").write_text(config)
        with pytest.raises(CompositionError, match=match):
            load_composition(str(mine))
        if beside:
            found = load_composition(str(tmp_path))
            assert found.names == ("other",)
            assert re.search(match, str(found.left_out["mine"]))
        else:
            with pytest.raises(CompositionError, match=match):
                load_composition(str(tmp_path))
    (mine / "model.safetensors").write_bytes(b"")
    (mine / "config.json").write_text("{}")
    assert "mine" in load_composition(str(tmp_path)).names


def test_an_adapter_and_what_is_none(tmp_path):
    folder_with(tmp_path / "base", "config.json")
    folder_with(tmp_path / "sql", "adapter_config.json")
    path = tmp_path / "c.toml"

    def refused(keys, match):
        path.write_text('name = "office"\n[[expert]]\nname = "sql"\n' + keys)
        with pytest.raises(CompositionError, match=match):
            load_composition(str(path))

    refused('checkpoint = "sql"\n', r"'sql'\] the adapter .*sql does not say what its base is; .* base = ")
    refused('checkpoint = "sql"\nbase = "none"\n', r"'sql'\.base\] base = 'none': there is no folder .*none")
    refused(
        'checkpoint = "sql"\nbase = "sql"\n',
        r"'sql'\.base\] .* has an adapter, where a whole model is expected; .* merge",
    )
    refused(
        'checkpoint = "base"\nbase = "base"\n', r"'sql'\.base\] .*checkpoint = 'base' is a whole model; leave it out"
    )
    (tmp_path / "sql" / "adapter_config.json").write_text('{"base_model_name_or_path": "sql"}')
    refused('checkpoint = "sql"\n', r"sql is 'sql', but .*sql is an adapter too, .*; merge that into its base first")
    (tmp_path / "sql" / "adapter_config.json").write_text('{"base_model_name_or_path": "gone"}')
    refused('checkpoint = "sql"\n', r"sql is 'gone', but [^ ]*/gone is no checkpoint; put it beside")
    refused('checkpoint = "base"\nadapter = "base"\n', r"'sql'\.adapter\] .*there is no adapter in .*base")
    refused('checkpoint = "sql"\nadapter = "sql"\n', r"'sql'\.checkpoint\] .* has an adapter, where a whole model")
    refused('checkpoint = "base"\nadapter = "sql"\nbase = "base"\n', r"'sql'\.base\] .* two keys; leave one out")
    refused('config = "llama-2-7b"\nadapter = "sql"\n', r"adapter = \"sql\" has no meaning without checkpoint")
    refused('config = "llama-2-7b"\nbase = "base"\n', r"base = \"base\" has no meaning without checkpoint")
    router = '[router]\nkind = "llm"\nfallback = "sql"\ncheckpoint = "sql"\n'
    refused(
        'checkpoint = "base"\n' + router, r"router\.checkpoint\] .* has an adapter, where a whole model is expected"
    )
