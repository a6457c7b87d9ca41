"""Answers held to forms, with tokens guessed ahead: the answers, logprobs, KV bits and decisions are those without."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.pure.test_grammar import VOCABULARIES
from tests.system.test_decisions import EVERYTHING, STEADY
from tests.system.test_reuse import Server
from tests.system.tiny import write_expert

from coterie.api.assemble import Options
from coterie.checkpoint.calls import Calling
from coterie.checkpoint.constraint import Constraint
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.grammar import grammar_of
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.assembly import plan, wire
from coterie.engine.policy import MAX_GUESSES
from coterie.engine.request import ChoiceParams, Request, SamplingParams
from coterie.models.model import open_model
from coterie.spec.load import load_machine
from coterie.spec.this_machine import this_machine

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
LETTERS = ["a", "b b", "name", "tags", "\u00e9a", "alive", "aa", "<|other|>"]


def random_schema(rng, depth=0):
    """An object, or what one may hold: words, numbers, lists, and objects in it."""
    kind = rng.integers(7 if depth < 2 else 4) if depth else 6
    words = rng.permutation(LETTERS).tolist()
    if kind == 4:
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": 1, "maxItems": 3}
    if kind < 4:
        limited = {"type": "string", "maxLength": 5}
        return [{"const": words[0]}, {"enum": [*words[:2], None]}, {"type": "boolean"}, limited][kind]
    count = int(rng.integers(1, 5))
    properties = {name: random_schema(rng, depth + 1) for name in words[:count]}
    required = words[: int(rng.integers(count + 1))]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def requests(tokenizer, vocab_size, ends, seed):
    """Asked at once: random schemas, calls of tools, an answer without a form, a choice and a regular expression, each
    with its own settings.
    """
    rng, made = np.random.default_rng(seed), []
    words = [tokenizer.encode(word, add_special_tokens=False) for word in LETTERS]
    prompt = [token for _ in range(12) for token in words[rng.integers(len(words))]]
    for number in range(7):
        mask, grammar = None, grammar_of(tokenizer, vocab_size, ends)
        if number < 3:
            mask = grammar.mask(json.dumps(random_schema(rng)))
        elif number == 3:
            tools = [{"function": {"name": name, "strict": True, "parameters": random_schema(rng)}} for name in "ab"]
            mask = grammar.calls(FORMS[list(FORMS)[seed % 3]], tools, Calling(bool(seed % 2)))
        elif number == 5:
            mask = grammar.constrained(Constraint.choice([" ".join(rng.permutation(LETTERS)) for _ in range(4)]))
        elif number == 6:
            mask = grammar.constrained(Constraint.regex("(name: [a-c]{1,5}; tags: (alive|aa)\\.){4}"))
        blanks = [token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token).isspace()]
        choice = ChoiceParams(
            top_logprobs=(None, 0, 3)[number % 3],
            frequency_penalty=0.3 * (number == 1),
            repetition_penalty=1.2 if number == 2 else 1.0,
            logit_bias=tuple((token, -100.0) for token in blanks),
            mask=mask,
        )
        sampling = SamplingParams(0.9 * (number % 2), top_p=0.9, seed=seed + number)
        stop = ("a", "name")[number : number + 1] if number in (0, 4) else ()
        fields = {"end_ids": ends, "stop": stop, "detokenizer": tokenizer.detokenizer(), "choice": choice}
        made.append(Request(f"r{number}", "one", tuple(prompt), int(rng.integers(20, 60)), sampling, **fields))
    return made


class FormServer(Server):
    """Keeps all that comes out."""

    def serve(self, asked):
        outputs = {request.request_id: [] for request in asked}
        for request in asked:
            self._numbers[self.parts.engine.metrics.submitted] = request.request_id
            self.parts.engine.submit(request)
        while not self.parts.engine.idle:
            for output in self.parts.engine.step():
                outputs[output.request_id].append(output)
        return {
            name: (
                sum((output.token_ids for output in its), ()),
                sum((output.logprobs for output in its), ()),
                "".join(output.text for output in its),
                its[-1].finish_reason,
                str(its[-1].error),
            )
            for name, its in outputs.items()
        }


@pytest.fixture(scope="module", params=VOCABULARIES)
def spoken(request, tmp_path_factory):
    """A random expert and the tokenizer that it has."""
    tokenizer, ends = VOCABULARIES[request.param]()
    vocab_size = tokenizer.vocab_size + 7
    folder = write_expert(tmp_path_factory.mktemp("one") / "one", 3, vocab_size=vocab_size, **SHAPE)
    (folder / "tokenizer.json").unlink()
    return open_model(folder), tokenizer, vocab_size, ends


@pytest.mark.parametrize("guesses", [MAX_GUESSES, None], ids=["all", "formed"])
def test_answers_logprobs_and_bits_are_those_of_one_token_a_step(spoken, guesses):
    """None: such a small expert's tokens are guessed only where a form leaves few."""
    model, *vocabulary = spoken
    counted = dict.fromkeys(("guessed", "accepted"), 0)
    for seed in range(4):
        found, servers = {}, {}
        for most in (0, guesses):
            servers[most] = server = FormServer(model, True, threads=1 + (most == 0), max_guesses=most)
            found[most] = server.serve(requests(*vocabulary, seed))
            server.device.close()
        assert found[guesses] == found[0]
        for name, state in servers[0].state.items():
            its = servers[guesses].state[name]  # of one token more where a stop string was found within guesses
            assert 0 <= len(its) - len(state) <= 1
            assert np.array_equal(its[: len(state)], state), name
        metrics, plain = servers[guesses].parts.engine.metrics, servers[0].parts.engine.metrics
        assert (plain.guessed_tokens, plain.drawn_tokens) == (0, metrics.drawn_tokens)
        counted["guessed"] += metrics.guessed_tokens
        counted["accepted"] += metrics.accepted_tokens
        assert {reason for *_, reason, _ in found[0].values()} <= {"stop", "length"}
    assert counted["guessed"] > counted["accepted"] > 40


def run(device, model, policy, asked, record=0):
    options = Options(policy=policy, record=record, kv_bytes=1 << 20)
    models = {"one": model}
    parts = wire(models, plan(models, device.spec, options), options, device)
    tokens = {}
    for request in asked:
        parts.engine.submit(request)
    while not parts.engine.idle:
        for output in parts.engine.step():
            tokens[output.request_id] = tokens.get(output.request_id, ()) + output.token_ids
    metrics = parts.engine.metrics
    return parts, (tokens, list(parts.engine.decisions), metrics.guessed_tokens, metrics.accepted_tokens)


def test_decisions_about_forms_are_the_same_on_every_device_that_computes(spoken):
    """Of machines with one balance; and a real run replayed gives its own log."""
    model, *vocabulary = spoken
    policy, found = replace(STEADY, max_guesses=MAX_GUESSES, flops_per_byte=4), []
    for device in (CpuDevice(threads=1), ModelledDevice(load_machine("toy"), numerics=CpuDevice(threads=1))):
        found.append(run(device, model, policy, requests(*vocabulary, 5))[1])
        device.close()
    assert found[0] == found[1]
    assert found[0][3] > 0
    forced, device = replace(EVERYTHING, max_guesses=None), CpuDevice(threads=1)
    parts, real = run(device, model, forced, requests(*vocabulary, 6), record=1 << 14)
    replaying = ModelledDevice(this_machine(), CpuDevice(threads=1), parts.recorded().durations())
    assert run(replaying, model, forced, requests(*vocabulary, 6))[1] == real
    assert real[3] > 0
    for used in (device, replaying):
        used.close()
