"""coterie plan: machines side by side, the simulation's verdict, files of requests, and mistakes as sentences."""

from __future__ import annotations

import json

import pytest
from tests.pure.counting import calls_of
from tests.system.test_plan import run

from coterie.plan.size import smallest
from coterie.spec.load import load_machine

CHECKED = ("--machine", "toy-tiers", "--slo", "ttft=12ms", "--prompt", 9, "--tokens", 5, "--requests", 300, "--check")


def test_the_answer_of_a_check_is_the_simulations(many):
    """It keeps the promise and one machine fewer does not; all that is printed follows it, the estimate beside it."""
    result = run(many, *CHECKED, "--rate", 1500, "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    found, kept = row["machines"], row["check"]["kept"]
    assert found == row["check"]["machines"] == len(row["placement"]) > 1
    assert kept[str(found)] >= 0.95
    assert kept[str(found - 1)] < 0.95
    assert abs(row["estimate"] - found) <= 1  # the formulas are not far off
    assert row["ttft_s"] <= 0.012
    assert row["bound"].startswith(f"ttft: with {found - 1} it is ")
    assert {"experts": 12, "machines": found} in row["curve"]
    assert row["check"]["agrees"] == (row["estimate"] == found)


def test_an_estimate_that_is_wrong_is_shown_beside_the_answer(many, monkeypatch):
    wrong = iter([5])  # then as always
    monkeypatch.setattr("coterie.plan.size.smallest", lambda *wanted: next(wrong, None) or smallest(*wanted))
    result = run(many, *CHECKED, "--rate", 1500)
    assert result.exit_code == 0, result.output
    assert "5 machines keep it for" in result.stdout
    assert "the estimate was 5" in result.stdout
    assert "12: 3," in result.stdout  # the curve goes through the answer, not through the estimate


def test_a_plan_takes_less_than_a_million_calls(many):
    """Counted, as a second on a machine that is busy is no second."""
    words = ("--machine", "toy-tiers", "--rate", 2000, "--slo", "ttft=100ms,tpot=50ms", "--json")
    assert run(many, *words).exit_code == 0
    assert calls_of(lambda: run(many, *words)) < 1_000_000


def test_the_command_compares_machines_and_explains(many, tmp_path):
    args = ("--rate", 200, "--slo", "ttft=1s", "--html", tmp_path / "p.html")
    result = run(many, "--machine", "toy-tiers", "--machine", "sn40l-node", *args)
    assert result.exit_code == 0, result.output
    assert "bound by" in result.stdout
    assert "were one part 1.5 times as good" in result.stdout
    assert "<svg" in (tmp_path / "p.html").read_text()


def test_a_file_of_requests_says_what_is_asked(many, tmp_path):
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens,Expert"]
    lines += [f"2026-11-16 18:17:{n // 10:02}.{n % 10}0000000,9,5,e-{n % 3}" for n in range(200)]
    (tmp_path / "azure.csv").write_text("\n".join(lines) + "\n")
    words = ("--machine", "toy-tiers", "--slo", "ttft=1s", "--json")
    found = json.loads(run(many, *words, "--workload", tmp_path / "azure.csv").stdout)
    assert found["rate_per_s"] == pytest.approx(200 / 19.9)
    faster = json.loads(run(many, *words, "--workload", tmp_path / "azure.csv", "--rate", 50).stdout)
    assert faster["rate_per_s"] == 50
    checked = run(many, *words, "--workload", tmp_path / "azure.csv", "--check", "--requests", 60)
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["rows"][0]["check"]["machines"] >= 1
    assert "priority" not in checked.stdout
    ranked = [f"{line},{number % 2}" for number, line in enumerate(lines[1:])]
    (tmp_path / "azure.csv").write_text("\n".join([f"{lines[0]},Priority", *ranked]) + "\n")
    assumed = (
        "the formulas apply the SLO to all requests, as if they had one priority, and --check to those of priority 0"
    )
    for more in ((), ("--json",)):
        said = " ".join(run(many, *words[:-1], *more, "--workload", tmp_path / "azure.csv").stdout.split())
        assert f"{assumed}, who go first" in said


def test_a_question_that_the_routers_model_cannot_read_is_refused(many, tmp_path):
    (tmp_path / "config.json").write_text((many.parent / "config.json").read_text())
    asking = tmp_path / "c.toml"
    asking.write_text(many.read_text().replace("{prompt}", "{prompt}" + "x" * 600))
    result = run(asking, "--machine", "toy-tiers", "--rate", 5, "--slo", "ttft=1s", "--prompt", 120)
    assert result.exit_code == 2, result.output
    assert "holds 256 tokens, but a prompt of 120 comes with 150 of a question; shorten" in result.stderr


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--rate", "-1", "--slo", "ttft=1s"), "[--rate] is -1 requests/s"),
        (("--rate", "5", "--slo", "soon"), "[--slo] 'soon'"),
        (("--rate", "5", "--slo", "tpot=1us"), "more machines do not change that"),
        (("--rate", "5", "--slo", "ttft=1s", "--prompt", "300"), "320 tokens, prompt and answer, on average, but the"),
        (
            ("--rate", "5", "--slo", "ttft=1s", "--prompt", "uniform:1:1e300"),
            "[--prompt] 'uniform:1:1e300' goes beyond",
        ),
        (("--rate", "5", "--slo", "ttft=1s", "--seed", "-1"), "greater than or equal to 0"),
        (("--rate", "5", "--slo", "ttft=1s", "--busy", "1.1"), "[--busy] is 1.1; give a share of the time"),
        (("--rate", "5", "--slo", "ttft=1s", "--reused", "128"), "[--reused] is 128 of 128 tokens of a prompt"),
        (("--rate", "5", "--slo", "ttft=1s", "--reused", "9", "--check"), "whose prompts share nothing; leave --check"),
        (("--slo", "ttft=1s"), "[--rate] is missing; give the requests per second, or --workload FILE"),
        (("--rate", "5", "--slo", "ttft=1s", "--max-power", "20"), "[--max-power] '20' is no power; write 20kW"),
    ],
)
def test_mistakes_are_sentences(many, args, sentence):
    result = run(many, "--machine", "toy-tiers", *args)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert "Traceback" not in result.output


def test_keys_and_values_of_8_bits_leave_experts_more_room(tmp_path):
    """34 bytes for 32 numbers and their scale, where 16 bits take 64."""
    file, rooms = tmp_path / "few.toml", {}
    file.write_text('name = "few"\n[[expert]]\nname = "e-{i}"\nconfig = "llama-3.1-8b"\ncount = 2\n')
    for kind in ("auto", "int8"):
        words = ("--machine", "mi300x", "--rate", 1, "--prompt", 1000, "--slo", "ttft=10s", "--kv-type", kind)
        result = run(file, *words, "--json")
        assert result.exit_code == 0, result.output
        (row,) = json.loads(result.stdout)["rows"]
        rooms[kind] = load_machine("mi300x").tier("hbm").capacity_bytes - row["near_bytes"]
    assert rooms["int8"] * 64 == pytest.approx(rooms["auto"] * 34)
