"""What an expert's tokens are drawn by: a request's settings, a composition file's, a checkpoint's, and none."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from coterie.api.sampling import settled
from coterie.api.types import Query
from coterie.checkpoint.generation import NOT_ADVISED, advised
from coterie.core.errors import CheckpointError, RequestError
from coterie.core.sampling import SETTINGS, UNSET, PartialSampling
from coterie.engine.request import ChoiceParams, SamplingParams

QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}


def said_in(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text)
    return advised(folder)


def test_what_a_file_says(tmp_path):
    assert advised(tmp_path) is None
    assert said_in(tmp_path, {"eos_token_id": 7, "temperature": 0.7}) is None
    found = said_in(tmp_path, QWEN | {"eos_token_id": [1, 2], "typical_p": 0.5, "min_p": None})
    assert found.sampling.explicit == {name: value for name, value in QWEN.items() if name != "do_sample"}
    assert not found.notes
    with pytest.raises(CheckpointError, match="not valid JSON"):
        said_in(tmp_path, "{")


@pytest.mark.parametrize("said", [{"do_sample": False}, {"do_sample": None}, {"do_sample": "true"}, {}])
def test_a_file_that_does_not_sample_says_what_holds_of_greedy_answers_too(tmp_path, said):
    found = said_in(tmp_path, {**{k: v for k, v in QWEN.items() if k != "do_sample"}, **said})
    greedy = {"temperature": 0.0} if said.get("do_sample") is False else {}  # it says so itself
    assert found.sampling.explicit == {"repetition_penalty": 1.1, **greedy}


def test_a_file_that_samples_and_names_no_temperature_means_one(tmp_path):
    assert said_in(tmp_path, {"do_sample": True, "top_k": 64}).sampling.explicit == {"top_k": 64, "temperature": 1.0}
    assert said_in(tmp_path, {"do_sample": True, "temperature": 0}).sampling.explicit == {"temperature": 0}


@pytest.mark.parametrize(
    ("top_k", "wanted"), [(20.0, 20), (-1, 0), (0, 0), (2.5, None), (-2, None), (2**31, None), (math.inf, None)]
)
def test_numbers_as_files_write_them(tmp_path, top_k, wanted):
    found = said_in(tmp_path, {"do_sample": True, "top_k": top_k})
    assert found.sampling.top_k == wanted
    assert type(found.sampling.top_k) is type(wanted)
    assert bool(found.notes) == (wanted is None)


@pytest.mark.parametrize(
    ("name", "value", "note"),
    [
        (
            "temperature",
            "warm",
            "temperature is 'warm' in generation_config.json, which is ignored: it must",
        ),
        ("temperature", -1, "temperature is -1 in .* allowed is 0 .greedy. or 1e-06 to 100"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", True, "temperature is True"),
        ("top_p", 0, "top_p is 0 in .* above 0 and at most 1"),
        ("min_p", [0.1], r"min_p is \[0.1\]"),
        ("repetition_penalty", 1000, "repetition_penalty is 1000 in .* 0.01 to 100"),
    ],
)
def test_what_cannot_be_had_is_left_out_by_itself_and_told(tmp_path, name, value, note):
    found = said_in(tmp_path, QWEN | {name: value})
    wanted = {key: of_qwen for key, of_qwen in QWEN.items() if key not in ("do_sample", name)}
    assert found.sampling.explicit == {"temperature": 1.0, **wanted}
    (told,) = found.notes
    assert re.search(note, told)


def test_the_nearest_that_says_something_goes_before():
    checkpoint, file = PartialSampling(0.7, top_k=20, repetition_penalty=1.1), PartialSampling(top_k=5, min_p=0.1)
    both = file.over(checkpoint)
    assert both.explicit == {"temperature": 0.7, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
    assert UNSET.over(both) == both.over(UNSET) == both
    asked = PartialSampling(temperature=0, repetition_penalty=1, seed=3).over(both)
    assert (asked.temperature, asked.repetition_penalty, asked.top_k, asked.seed) == (0, 1, 5, 3)


def ask(**fields):
    return replace(Query.text("hello"), **fields)


DEFAULTS = PartialSampling(0.6, 20, 0.95, 0.01, 0.5, 0.25, 1.1)


def test_what_a_query_leaves_open_is_as_its_expert_has_it():
    assert settled(ask(), UNSET) == (SamplingParams(), ChoiceParams())
    sampling, choice = settled(ask(), DEFAULTS)
    assert sampling == SamplingParams(0.6, 20, 0.95, 0.01)
    assert choice == ChoiceParams(None, 0.5, 0.25, 1.1)
    sampling, choice = settled(ask(sampling=PartialSampling(top_p=1.0, repetition_penalty=1.0, seed=9)), DEFAULTS)
    assert sampling == SamplingParams(0.6, 20, 1.0, 0.01, 9)
    assert choice == ChoiceParams(None, 0.5, 0.25, 1.0)


def test_penalties_of_a_choice_go_before_defaults_and_the_rest_of_it_stays():
    choice = ChoiceParams(3, frequency_penalty=-1.0, logit_bias=((4, 1.0),))
    found = settled(ask(choice=choice), DEFAULTS)[1]
    assert found == replace(choice, presence_penalty=0.5, repetition_penalty=1.1)


def test_whole_settings_leave_nothing_open():
    query = ask(sampling=SamplingParams(seed=4), choice=ChoiceParams(1))
    assert settled(query, DEFAULTS) == (SamplingParams(seed=4), ChoiceParams(1))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_value_is_refused_by_its_name(name):
    with pytest.raises(RequestError, match=f"{name} is 1000000000000"):
        PartialSampling(**{name: 10**12})
    neutral = SETTINGS[name].neutral
    assert PartialSampling(**{name: neutral}).value(name) == PartialSampling().value(name) == neutral


def test_a_seed_is_one_of_64_bits():
    with pytest.raises(RequestError, match="seed is -1"):
        PartialSampling(seed=-1)


def test_nobody_advises_unless_a_file_does():
    assert NOT_ADVISED.sampling == UNSET
    assert not NOT_ADVISED.notes
