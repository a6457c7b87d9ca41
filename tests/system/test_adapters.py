"""Adapters as experts: one base in memory, adapters that come and go beside it; by folder, by file, by every door."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.system.adapting import NAMES, greedy, tokens_of, trained_on
from tests.system.commands import refused, run
from tests.system.tiny import CONFIG, write_adapter, write_expert

from coterie import Coterie
from coterie.api.assemble import Options
from coterie.api.types import Query
from coterie.cli.ps import show
from coterie.composition.composition import load_composition
from coterie.core.errors import CapacityError, ConflictError
from coterie.engine.experts import open_experts
from coterie.graph.ops import BF16, INT16
from coterie.models.fine_tunes.merge import merge_folder
from coterie.models.model import open_model
from coterie.plan.mix import mix_named
from coterie.plan.setups import OURS
from coterie.plan.simulate import Case, simulate
from coterie.plan.workload import Load, lengths_named, make_workload
from coterie.spec.load import load_machine


def test_a_folder_of_a_base_and_adapters_is_served(experts: Path, tmp_path: Path) -> None:
    """Each answers as its merged folder does; equal shapes share a program; what moves is the adapters' bytes alone."""
    with Coterie.open(experts) as coterie:
        plan = coterie.plan
        assert plan.base_of == dict.fromkeys(NAMES, "base")
        assert list(plan.base_bytes) == ["base"]
        assert set(plan.expert_bytes) == set(NAMES)
        assert coterie.status().expert("base").state == "resident"
        assert {coterie.status().expert(name).base for name in NAMES} == {"base"}
        answers = {name: tokens_of(coterie, name) for name in (*NAMES, "base", *NAMES)}
        moved = coterie.status().moves.moved_bytes["disk->dram"]
        layouts = {name: model.layout for name, model in coterie.models.items()}
        assert moved == sum(r.source.size_bytes for layout in layouts.values() for r in layout.ranges)
        assert coterie.models["sql"].key == coterie.models["tax"].key != coterie.models["german"].key
        served = coterie.parts.engine._experts["sql"]  # a run has so many steps as what they read lets it
        assert served.weight_bytes == layouts["sql"].size_bytes + layouts["base"].size_bytes
        tiers = {tier.of: tier for tier in coterie.status().tiers}
        assert tiers["bases"].used_bytes == tiers["bases"].capacity_bytes == plan.bases_bytes
    assert len(set(answers.values())) == 4
    for name in NAMES:
        merge_folder(experts / "base", experts / name, tmp_path / name)
    with Coterie.open(tmp_path) as coterie:
        # bfloat16 rounds a sum, so the last tokens may differ; what begins alike is the adapter's.
        assert all(tokens_of(coterie, name)[0] == answers[name][0] for name in NAMES)


def test_adapters_take_turns_in_little_memory(experts: Path) -> None:
    """Room for one adapter beside the base; each answers as where all fit, whoever was there before, base included."""
    with Coterie.open(experts) as coterie:
        wanted = {name: tokens_of(coterie, name) for name in (*NAMES, "base")}
        sizes = {name: model.layout.size_bytes for name, model in coterie.models.items()}
    near = sizes["base"] + max(sizes[name] for name in NAMES)
    with Coterie.open(experts, Options(near_bytes=near)) as coterie:
        for name in ("sql", "base", "german", "tax", "base", "sql", "german"):
            assert tokens_of(coterie, name) == wanted[name]
            assert "base" in coterie.parts.all_weights.residents
        assert coterie.status().moves.evictions["dram"] >= 3
        coterie.parts.all_weights.check_integrity()
    with Coterie.open(experts, Options(near_bytes=near - 4096)) as coterie:
        left_out = coterie.composition.left_out
        assert all(
            re.search(rf"beside 68\.00 KiB of bases .* set --near to at least {near} B", str(why))
            for why in left_out.values()
        )
        assert 0 < len(left_out) < len(NAMES)


def test_adapters_of_two_bases_take_turns_in_one_place(experts: Path, tmp_path: Path) -> None:
    """One program, one extent, offsets alike: each beside its own base. Of experts that are a base too, the first."""
    for seed, name in enumerate(("base", "other"), 1):
        write_expert(tmp_path / name, seed)
    for name in ("sql", "tax"):
        trained_on(Path(shutil.copytree(experts / "sql", tmp_path / name)), "other" if name == "tax" else "base")
    alone = {}
    for name in ("sql", "tax", "base", "other"):
        with Coterie.open(tmp_path / name) as coterie:
            alone[name] = tokens_of(coterie, name)
    assert len(set(alone.values())) == 4
    path = tmp_path / "office.toml"
    names = ("sql", "tax", "base", "again", "other")
    tables = [f'[[expert]]\nname = "{name}"\ncheckpoint = "{name.replace("again", "base")}"\n' for name in names]
    path.write_text('name = "office"\n' + "".join(tables))
    with Coterie.open(path) as coterie:
        plan, sizes = coterie.plan, {name: model.layout.size_bytes for name, model in coterie.models.items()}
        assert plan.base_of == {"sql": "base", "tax": "other"}
        assert plan.expert_bytes.keys() == {"sql", "tax", "again"}
    near = 3 * sizes["base"]
    with Coterie.open(path, Options(near_bytes=near)) as coterie:
        assert coterie.plan.near_bytes + coterie.plan.bases_bytes == near
        for name in ("sql", "tax", "again", "tax", "sql", "other", "tax", "base"):
            assert tokens_of(coterie, name) == alone[name.replace("again", "base")]


@pytest.mark.parametrize("activations", [INT16, BF16])
def test_several_at_once_and_a_prefix_of_one_is_no_others(experts: Path, activations: str) -> None:
    with Coterie.open(experts, Options(activations=activations)) as coterie:
        prompt, alone = "a prompt of more than one block " * 2, {}
        for name in NAMES:
            alone[name] = coterie.ask(greedy(prompt, name)).token_ids
    with Coterie.open(experts, Options(activations=activations)) as coterie:
        together = coterie.ask_all([greedy(prompt, name) for name in NAMES * 2])
        assert [answer.token_ids for answer in together] == [alone[name] for name in NAMES * 2]
        again = coterie.ask_all([greedy(prompt, name) for name in (*NAMES, "base")])
        assert [answer.cached_tokens > 0 for answer in again] == [True, True, True, False]


def test_load_unload_and_pin(experts: Path) -> None:
    """An adapter's bytes go and the base stays; a base is not unloaded."""
    with Coterie.open(experts) as coterie:
        coterie.load("sql")
        coterie.pin("sql")
        assert coterie.status().expert("sql").pinned
        coterie.unpin("sql")
        used = coterie.parts.cache.ledgers[0].used_bytes
        coterie.unload("sql")
        assert coterie.parts.cache.ledgers[0].used_bytes == used - coterie.models["sql"].layout.size_bytes
        assert coterie.status().expert("sql").state == "absent"
        assert coterie.resident() == ("base",)
        coterie.load("base")
        with pytest.raises(ConflictError, match=r"unload base\] it is the base of other experts, which stays"):
            coterie.unload("base")
        console = Console(width=120, record=True)
        console.print(show(coterie.status().to_dict(), "here"))
        lines = [line.split() for line in console.export_text().splitlines()]
        assert ["sql", "12.00", "base"] in [words[0::3] for words in lines], lines
        assert ["dram", "bases", "100%"] in [[*words[:2], *words[-4:-3]] for words in lines], lines
        coterie.pin("base")
        coterie.unpin("base")
        assert tokens_of(coterie, "base")


def test_a_base_is_in_memory_for_a_router_that_prefers_who_is(experts: Path, tmp_path: Path) -> None:
    """Of two that score alike, the base is there and the adapter is not; the folder of a base is no expert's name."""
    path = tmp_path / "office.toml"
    path.write_text(f"""
name = "office"
[router]
kind = "rules"
match = "weight"
fallback = "tax"
prefer_resident = 0.9
[[router.rule]]
expert = "sql"
keywords = ["rows"]
[[router.rule]]
expert = "general"
keywords = ["rows"]
confidence = 0.4
[[expert]]
name = "sql"
checkpoint = "{experts}/sql"
base = "{experts}/base"
[[expert]]
name = "tax"
checkpoint = "{experts}/tax"
base = "{experts}/base"
[[expert]]
name = "general"
checkpoint = "{experts}/base"
""")
    with Coterie.open(path) as coterie:
        answer = coterie.ask(replace(Query.text("rows"), max_tokens=1))
        assert answer.route.expert == "general"
        assert "general is in memory, sql is not" in answer.route.reason
        assert coterie.resident() == ("general",)
        coterie.load("sql")
        assert coterie.ask(replace(Query.text("rows"), max_tokens=1)).route.expert == "sql"
        with pytest.raises(ConflictError, match="it is the base of other experts"):
            coterie.unload("general")


def test_commands_for_one_adapter(experts: Path, tmp_path: Path) -> None:
    """`run --expert`, `diff`, on its own, and on a modelled machine whose sockets share the work."""
    answer = json.loads(run("run", experts, "--expert", "tax", "--raw", "--max-tokens", "2", "--json", "a").stdout)
    assert answer["expert"] == "tax"
    assert "worst" in run("diff", experts, "--expert", "sql").stdout
    refused(run("quantize", experts / "sql", experts / "out"), "holds a LoRA adapter", "coterie merge")
    few = ("--rate", "5", "--prompt", "20", "--tokens", "4")
    simulated = run("simulate", experts, "--machine", "a100", "--requests", "6", "--json", *few)
    assert simulated.exit_code == 0, simulated.output
    (row,) = json.loads(simulated.stdout)["rows"]
    assert row["footprint"]["bases_bytes"] == open_model(experts / "base").layout.size_bytes
    assert "68.00 KiB bases" in run("simulate", experts, "--machine", "a100", "--requests", "2", *few).stdout
    planned = run("plan", experts, "--machine", "a100", "--slo", "ttft=1s", "--check", "--requests", "20", *few)
    assert "beside 68.00 KiB of bases" in planned.stdout
    alone = trained_on(Path(shutil.copytree(experts / "sql", tmp_path / "sql")), str(experts / "base"))
    assert run("check", alone).exit_code == 0
    modelled = run(
        "run", experts, "--expert", "tax", "--device", "modelled:sn40l-node", "--max-tokens", "2", "--json", "a"
    )
    assert len(json.loads(modelled.stdout)["token_ids"]) == 2


def test_a_simulation_counts_the_base_where_files_are_and_beside_the_largest(experts: Path) -> None:
    """Room to the byte, and one byte less: in the tier that all are in, and in that from which they run."""
    composition, spec = load_composition(str(experts)), load_machine("toy-tiers")
    models = open_experts(composition, synthetic=False)
    load = make_workload(Load(3, mix_named("uniform"), *[lengths_named("4", "x")] * 2, rate=9.0), composition.names)
    made = simulate(Case(composition, models, spec, OURS), load).plan
    largest = made.bases_bytes + max(made.expert_bytes.values())
    least = {
        spec.home_tier: made.bases_bytes + made.total_bytes,
        spec.run_tier: largest + made.kv_bytes + made.work_bytes,
    }
    for name, size in least.items():
        for short in (0, 1):
            tiers = [replace(t, capacity_bytes=size - short) if t.name == name else t for t in spec.tiers]
            case = Case(composition, models, replace(spec, tiers=tuple(tiers)), OURS, kv_bytes=made.kv_bytes)
            if short:
                with pytest.raises(CapacityError, match=f"toy-tiers: {name}"):
                    simulate(case, load)
            else:
                assert len(simulate(case, load).hit) == 3


def test_a_routers_own_model_is_no_base(experts: Path, tmp_path: Path) -> None:
    """Though its folder is the same: each side has its own."""
    path = tmp_path / "office.toml"
    path.write_text(f"""
name = "office"
[router]
kind = "llm"
checkpoint = "{experts}/base"
fallback = "sql"
[[expert]]
name = "sql"
checkpoint = "{experts}/sql"
base = "{experts}/base"
""")
    checked = json.loads(run("check", path, "--json").stdout)
    size = open_model(experts / "base").layout.size_bytes
    assert (checked["base_bytes"], checked["router_bytes"]) == ({str(experts / "base"): size}, size)


def test_fifty_adapters_cost_one_base(experts: Path, tmp_path: Path) -> None:
    """Sizes as they are planned: the base once, and each adapter's own bytes, rounded up to blocks."""
    shutil.copytree(experts / "base", tmp_path / "base")
    for number in range(50):
        trained_on(write_adapter(tmp_path / f"adapter-{number}", ("q_proj", "v_proj"), seed=number), "base")
    checked = json.loads(run("check", tmp_path, "--json").stdout)
    weights = [value["weight_bytes"] for name, value in checked["experts"].items() if name != "base"]
    assert len(weights) == 50
    assert checked["near_bytes"] == sum(weights) < 2 * 50 * 4096 + 1
    assert sum(checked["base_bytes"].values()) == open_model(tmp_path / "base").layout.size_bytes
    assert CONFIG["num_hidden_layers"] == 2
