"""The command line, as a person uses it: answers and JSON."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from rich.console import Console
from tests.system.commands import command_of, refused, run
from tests.system.tiny import write_adapter, write_expert

from coterie.api import Chunk, Coterie, Message, Query
from coterie.cli.main import COMMANDS, command
from coterie.cli.run import CONTROL, print_stream
from coterie.models.model import open_model


def test_every_command_has_its_page() -> None:
    whole = run("--help").stdout
    for name in COMMANDS:
        assert re.search(rf"^│ {name} ", whole, re.MULTILINE)
        page = run(name, "--help")
        assert page.exit_code == 0, page.output
        assert f"coterie {name}" in page.stdout.replace("root", "coterie")
    assert run("nothing").exit_code == 2


@pytest.mark.parametrize(
    ("words", "others"),
    [
        (["route", "--help"], ("coterie.bench", "coterie.plan", "coterie.server")),
        (["--help"], ("coterie.api", "coterie.core", "numpy", "tokenizers")),
        (["trace", "--help"], ("coterie.api", "coterie.devices", "coterie.engine", "numpy", "tokenizers")),
    ],
)
def test_a_command_does_not_wait_for_what_others_need(words: list[str], others: tuple[str, ...]) -> None:
    """All commands together take ten times as long to import as the list of them."""
    script = f"import sys; from coterie.cli.main import app; app({words}, standalone_mode=False)"
    script += f"; sys.exit(' '.join(name for name in sys.modules if name.startswith({others})))"
    ran = subprocess.run([sys.executable, "-c", script], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert ran.stderr.split() == []


def test_the_help_page_says_of_each_command_what_its_own_page_does() -> None:
    for name, does in COMMANDS.items():
        assert inspect.cleandoc(command(name).help).partition("\n")[0] == does


def test_a_misspelt_command_is_told_apart() -> None:
    got = run("srve")
    assert (got.exit_code, "Did you mean 'serve'?" in got.output) == (2, True)


def test_run_raw_prints_the_promised_json(folder: Path) -> None:
    args = ("run", folder, "--expert", "ada", "--raw", "--temperature", "0", "--max-tokens", "5", "--json", "Hello")
    first, second = run(*args), run(*args)
    assert first.exit_code == 0, first.output
    got = json.loads(first.stdout)
    assert {"text", "token_ids", "expert", "confidence", "switch_s", "ttft_s", "tokens_per_s"} <= set(got)
    assert got["expert"] == "ada"
    assert got["prompt_tokens"] == len("Hello")
    assert 1 <= len(got["token_ids"]) <= 5
    assert not got["hit"]
    assert got["switch_s"] > 0
    assert got["token_ids"] == json.loads(second.stdout)["token_ids"]


@pytest.mark.parametrize(("option", "cached"), [("--reuse", 32), ("--no-reuse", 0)])
def test_run_shares_what_prompts_begin_with_unless_told_not_to(folder: Path, option: str, cached: int) -> None:
    words = ("run", folder, "--expert", "ada", "--raw", "--max-tokens", "2", option, "x" * 40 + "y", "x" * 40 + "z")
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    assert [answer["cached_tokens"] for answer in json.loads(result.stdout)] == [0, cached]
    assert ("32 of 41 prompt tokens cached" in run(*words).stdout) == (cached > 0)


def test_run_guesses_what_is_repeated_and_answers_the_same(folder: Path) -> None:
    """By itself not of so small an expert."""
    words = ["run", folder, "--expert", "ada", "--raw", "--max-tokens", "60", "--stop", "never said", "ab" * 20]
    asked = [run(*words, "--json", *more) for more in ((), ("--speculate", 7))]
    assert [result.exit_code for result in asked] == [0, 0], asked[1].output
    plain, guessed = (json.loads(result.stdout) for result in asked)
    assert guessed["token_ids"] == plain["token_ids"]
    assert plain["guessed_tokens"] == plain["accepted_tokens"] == 0
    assert 0 < guessed["accepted_tokens"] < guessed["guessed_tokens"]
    told = f"{guessed['accepted_tokens']} of {guessed['guessed_tokens']} drafts accepted"
    assert told in run(*words, "--speculate", 7).stdout


def test_run_routes_and_shows_how_the_answer_came(composition: Path) -> None:
    result = run("run", composition, "a question for bob", "@cyd and one for cyd", "neither", "--max-tokens", "4")
    assert result.exit_code == 0, result.output
    assert "bob · confidence" in result.stdout
    assert "cyd · confidence 1.00" in result.stdout
    assert "dan (fallback)" in result.stdout
    assert "switch" in result.stdout
    assert "tokens/s" in result.stdout


@pytest.mark.parametrize("terminal", [False, True])
def test_an_answer_is_shown_as_it_comes(
    terminal: bool, composition: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file gets what the model wrote; a terminal gets nothing that it would obey."""
    monkeypatch.setattr("coterie.cli.run.out", Console(force_terminal=terminal))
    seen: list[str] = []
    with Coterie.open(composition) as coterie:
        query = Query((Message("user", "for ada"),), max_tokens=40)
        expected = coterie.ask(query).text
        stream = coterie.stream

        def watched(query: Query) -> Iterator[Chunk]:
            for chunk in stream(query):
                seen.append(capsys.readouterr().out)
                yield replace(chunk, text=chunk.text.replace("a", "\x1b"))

        monkeypatch.setattr(coterie, "stream", watched)
        assert print_stream(coterie.stream(query)).text == expected
    assert any(seen)  # some of it before the last chunk
    shown = "".join(seen) + capsys.readouterr().out
    wanted = expected.replace("a", "\x1b")
    wanted = CONTROL.sub("\N{REPLACEMENT CHARACTER}", wanted) if terminal else wanted
    assert shown.startswith(wanted + "\n")


def test_run_reads_questions_from_stdin(composition: Path) -> None:
    result = run("run", composition, "--json", "--max-tokens", "2", stdin="for ada\n\nfor bob\n")
    assert [a["expert"] for a in json.loads(result.stdout)] == ["ada", "bob"]


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "h?llo"), ("ascii:backslashreplace", r"h\xe9llo"), ("utf-8", "héllo")]
)
def test_a_terminal_that_cannot_encode_a_character_shows_another(composition: Path, encoding: str, shown: str) -> None:
    words = ("run", composition, "héllo ada", "--max-tokens", "9")

    def printed(*options: str) -> str:
        env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        ended = subprocess.run(command_of(*words, *options), check=False, capture_output=True, env=env)
        assert (ended.returncode, ended.stderr) == (0, b"")
        return ended.stdout.decode(encoding.partition(":")[0])

    assert f"{shown} ada\n" in printed()
    # JSON loses nothing.
    assert json.loads(printed("--json"))["text"] == json.loads(run(*words, "--json").stdout)["text"]


def test_the_same_expert_is_a_hit_the_second_time(folder: Path) -> None:
    result = run("run", folder, "--expert", "ada", "--json", "--max-tokens", "2", "one", "two")
    assert [a["hit"] for a in json.loads(result.stdout)] == [False, True]


def test_a_budget_of_one_expert_still_serves_all(composition: Path) -> None:
    prompts = ["ada", "bob", "cyd", "ada"]
    roomy = json.loads(run("run", composition, "--json", "--max-tokens", "6", *prompts).stdout)
    size = max(e["weight_bytes"] for e in json.loads(run("check", composition, "--json").stdout)["experts"].values())
    tight = json.loads(run("run", composition, "--json", "--max-tokens", "6", "--near", str(size), *prompts).stdout)
    assert [a["token_ids"] for a in roomy] == [a["token_ids"] for a in tight]
    assert [a["hit"] for a in roomy] == [False, False, False, True]
    assert [a["hit"] for a in tight] == [False] * 4


@pytest.mark.parametrize("device", ["modelled:toy", "synthetic:sn40l-node"])
def test_run_on_a_modelled_machine(composition: Path, device: str) -> None:
    result = run("run", composition, "--device", device, "--json", "--max-tokens", "4", "for ada")
    assert result.exit_code == 0, result.output
    got = json.loads(result.stdout)
    assert got["synthetic"] == device.startswith("synthetic")
    if not got["synthetic"]:
        real = json.loads(run("run", composition, "--json", "--max-tokens", "4", "for ada").stdout)
        assert got["token_ids"] == real["token_ids"]


def test_run_holds_answers_to_a_schema(folder: Path, tmp_path: Path) -> None:
    words = ("run", folder, "--expert", "ada", "--json", "--max-tokens", "40", "who?")
    schema = '{"enum": ["x", "yy"]}'
    (tmp_path / "schema.json").write_text(schema)
    for given in (schema, tmp_path / "schema.json"):
        got = json.loads(run(*words, "--json-schema", given).stdout)
        assert (json.loads(got["text"]), got["finish_reason"]) in [("x", "stop"), ("yy", "stop")]
    assert json.loads(run(*words, "--json-object").stdout)["text"].startswith("{")


def test_route_says_why(composition: Path) -> None:
    result = run("route", composition, "--json", "a question for bob")
    got = json.loads(result.stdout)
    assert got["expert"] == "bob"
    assert "bob" in got["reason"]
    assert "bob" in run("route", composition, "a question for bob").stdout


def test_check_says_where_the_bytes_go(composition: Path) -> None:
    got = json.loads(run("check", composition, "--json", "--near", "200KiB").stdout)
    assert set(got["experts"]) == {"ada", "bob", "cyd", "dan"}
    assert got["near_bytes"] <= 200 * 1024 < got["total_bytes"]
    assert "of the experts' bytes fit" in run("check", composition, "--near", "200KiB").stdout


def test_a_text_model_inside_a_larger_one(tmp_path: Path) -> None:
    """It answers as it does alone, and check says that its images are not read."""
    alone, whole = tmp_path / "one" / "seer", tmp_path / "two" / "seer"
    for folder in (alone, whole):
        folder.parent.mkdir()
        write_expert(folder, 3, model_type="mistral", architectures=["MistralForCausalLM"])
    text = json.loads((alone / "config.json").read_text())
    raw = {"model_type": "mistral3", "text_config": text, "vision_config": {"model_type": "pixtral"}}
    (whole / "config.json").write_text(json.dumps(raw))
    data = (whole / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({f"language_model.{name}": at for name, at in json.loads(data[8:end]).items()}).encode()
    (whole / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    answers = [run("run", one.parent, "hello", "--max-tokens", "6", "--json").stdout for one in (alone, whole)]
    assert json.loads(answers[0])["text"] == json.loads(answers[1])["text"]
    assert "of seer the text model is run; images are not read" in run("check", whole.parent).stdout
    assert "images" not in run("check", alone.parent).stdout
    parts = [json.loads(run("check", one.parent, "--json").stdout)["experts"]["seer"] for one in (alone, whole)]
    assert [part["part_of"] for part in parts] == ["", "mistral3"]
    assert parts[0] | {"part_of": "mistral3"} == parts[1]


def test_info_prints_this_machine_and_a_modelled_one() -> None:
    got = json.loads(run("info", "--json").stdout)
    assert got["cpus"] >= 1
    assert "plain" in got["instruction_sets"]
    assert "hbm" in run("info", "sn40l-node").stdout


def test_paths_may_begin_with_the_users_folder(
    folder: Path, composition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a composition file, as an argument, and where a shell leaves the ~ as it is."""
    text = composition.read_text().replace(str(folder), "~/experts")
    (tmp_path / "c.toml").write_text(text.replace('name = "four"', 'name = "home"'))
    (tmp_path / "experts").symlink_to(folder)
    machine = run("info", "sn40l-node", "--json")
    monkeypatch.setenv("HOME", str(tmp_path))
    got = run("run", "~/c.toml", "for ada", "--max-tokens", "2", "--trace", "~/trace.json")
    assert got.exit_code == 0, got.output
    assert (tmp_path / "trace.json").is_file()
    shipped = files("coterie.spec") / "machines" / "sn40l-node.toml"
    (tmp_path / "m.toml").write_text(shipped.read_text())
    assert run("info", "~/m.toml", "--json").stdout == machine.stdout
    assert run("quantize", "~/experts/ada", "~/packed").exit_code == 0
    assert (tmp_path / "packed" / "config.json").is_file()
    refused(run("map", "~/nothing"), "neither a model of the zoo nor a folder")
    refused(run("trace", "~nosuchuser/t.json"), "'~nosuchuser/t.json' begins with the folder of a user", "whole path")
    with Coterie.open(Path("~/c.toml")) as coterie:
        assert coterie.composition.name == "home"


def test_an_expert_named_like_the_composition(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'name = "ada"\n[[expert]]\nname = "ada"\ncheckpoint = "{folder / "ada"}"\n')
    refused(run("run", path, "hi"), "ada")


def test_sampling_without_a_seed_draws_one_and_says_which(folder: Path) -> None:
    args = ("run", folder, "--expert", "ada", "--json", "--temperature", "5", "--max-tokens", "16", "hello")
    first, second = json.loads(run(*args).stdout), json.loads(run(*args).stdout)
    assert first["seed"] != second["seed"]
    again = json.loads(run(*args, "--seed", first["seed"]).stdout)
    assert again["token_ids"] == first["token_ids"] != second["token_ids"]


def test_a_config_without_weights_needs_a_machine_without_numbers(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        f'name = "x"\n[[expert]]\nname = "e-{{i}}"\nconfig = "{folder / "ada" / "config.json"}"\ncount = 3\n'
    )
    refused(run("check", path), "e-0")
    got = json.loads(run("check", path, "--device", "synthetic:sn40l-node", "--json").stdout)
    assert len(got["experts"]) == 3
    printed = run("check", path, "--device", "synthetic:sn40l-node").stdout
    assert ("e-0 to e-2, 3" in printed, "e-1" in printed) == (True, False)
    args = ("run", path, "--device", "synthetic:sn40l-node", "--expert", "e-1", "--max-tokens", "3", "--json", "hello")
    answer = json.loads(run(*args).stdout)
    assert answer["synthetic"]
    assert (answer["prompt_tokens"], answer["text"]) == (5, "")
    config = tmp_path / "config.json"
    config.write_text("{")
    path.write_text(f'name = "x"\n[[expert]]\nname = "e"\nconfig = "{config}"\n')
    refused(run("check", path, "--device", "synthetic:sn40l-node"), "config.json")


def test_quantize_writes_an_expert_that_every_command_takes(folder: Path, tmp_path: Path) -> None:
    printed = run("quantize", folder / "ada", tmp_path / "ada8")
    assert printed.exit_code == 0, printed.output
    for word in ("mlp.down_proj", "embed_tokens", "8.50", "rms error", "->"):
        assert word in printed.stdout
    report = json.loads(run("quantize", folder / "ada", tmp_path / "ada4", "--bits", "4", "--json").stdout)
    assert report["after_bytes"] < report["before_bytes"]
    assert {row["type"] for row in report["kinds"]} == {"Q8", "Q4"}
    for name in ("ada8", "ada4"):
        assert run("check", tmp_path / name).exit_code == 0
        assert run("diff", tmp_path / name, "--prompt", "Hello").exit_code == 0
        args = ("--raw", "--temperature", "0", "--max-tokens", "5", "--json", "Hello")
        answer = json.loads(run("run", tmp_path / name, *args).stdout)
        assert answer["prompt_tokens"] == len("Hello")
        assert len(answer["token_ids"]) >= 1
        rounded = json.loads(run("run", tmp_path / name, "--activations", "int8", *args).stdout)
        assert rounded["prompt_tokens"] == len("Hello")


def test_merge_writes_an_expert_that_every_command_takes(folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", ("self_attn.q_proj", "mlp.down_proj"))
    printed = run("merge", folder / "ada", adapter, tmp_path / "sql")
    assert printed.exit_code == 0, printed.output
    for word in ("mlp.down_proj", "2 of 2", "lost to rounding", "self_attn.q_proj"):
        assert word in printed.stdout
    report = json.loads(run("merge", folder / "ada", adapter, tmp_path / "again", "--json").stdout)
    assert {row["kind"]: row["num_tensors"] for row in report["kinds"]} == {"self_attn.q_proj": 2, "mlp.down_proj": 2}
    assert all(0 < row["rounding"] < row["change"] for row in report["kinds"])
    assert (report["folder"], report["untied"]) == (str(tmp_path / "again"), False)
    assert run("check", tmp_path / "sql").exit_code == 0
    assert run("diff", tmp_path / "sql", "--prompt", "Hello").exit_code == 0
    said = run("merge", folder / "ada", write_adapter(tmp_path / "head", ("lm_head",)), tmp_path / "head-only")
    assert "1 of 1" in said.stdout
    assert "one matrix" not in said.stdout


def test_keys_and_values_are_kept_in_8_bits_where_that_is_asked_for(folder: Path) -> None:
    def per_token(*how: str) -> object:
        return json.loads(run("check", folder, "--json", *how).stdout)["experts"]["ada"]["kv_bytes_per_token"]

    kv = open_model(folder / "ada").kv
    assert per_token() == 2 * kv.num_layers * kv.num_kv_heads * kv.head_dim * kv.dtype.size_bytes
    assert per_token("--kv-type", "int8") == 2 * kv.num_layers * kv.num_kv_heads * -(-kv.head_dim // 32) * 34
    said = run("run", folder, "--expert", "ada", "--kv-type", "int8", "--max-tokens", "3", "--json", "hi")
    assert said.exit_code == 0, said.output
