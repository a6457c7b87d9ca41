"""Fine-tunes as packed differences from one base: written by `coterie delta`, served by every door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.system.adapting import greedy, tokens_of
from tests.system.commands import refused, run
from tests.system.tiny import write_adapter, write_expert, write_safetensors

from coterie import Coterie
from coterie.api.assemble import Options
from coterie.checkpoint.safetensors import read_header
from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.engine.variants import variant_groups_of
from coterie.models.tensors import map_bytes

NAMES = ("sql", "tax")


def write_tuned(folder: Path, base: Path, seed: int, only: str = "") -> Path:
    """A copy of a base with every tensor, or every one with such a name, changed by a quarter."""
    shutil.copytree(base, folder)
    rng, tensors = np.random.default_rng(seed), {}
    for name, info in read_header(base / "model.safetensors").items():
        values = to_f32(np.asarray(map_bytes(info).view(np.uint16)), DType.BF16)
        change = 0.25 if only in name else 0.0
        values = values + change * values.std() * rng.standard_normal(values.shape).astype(np.float32)
        tensors[name] = ("BF16", info.shape, from_f32(values, DType.BF16).tobytes())
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`: a base and two fine-tunes; `office`: the base, their deltas and an adapter of it, side by side."""
    root = tmp_path_factory.mktemp("deltas")
    base = write_expert(root / "whole" / "base", 1)
    shutil.copytree(base, root / "office" / "base")
    for seed, name in enumerate(NAMES, 2):
        write_tuned(root / "whole" / name, base, seed)
        written = run("delta", base, root / "whole" / name, root / "office" / name, "--bits", "8", "--json")
        assert written.exit_code == 0, written.output
        report = json.loads(written.stdout)
        assert report["after_bytes"] == (root / "office" / name / "delta.safetensors").stat().st_size
        assert {row["stored"] for row in report["kinds"]} == {"int8", "whole"}
    shutil.move(base, root / "moved")  # the delta names where it was; it is found beside the deltas
    adapter = write_adapter(root / "office" / "german", ("q_proj",))
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "a/base"}))
    return root


def test_a_folder_of_a_base_deltas_and_an_adapter_is_served(root: Path) -> None:
    """Each answers as the fine-tune of which it was made; equal shapes share a program; a switch moves deltas alone."""
    with Coterie.open(root / "whole") as coterie:
        wanted = {name: tokens_of(coterie, name) for name in NAMES}
    with Coterie.open(root / "office") as coterie:
        plan, models = coterie.plan, coterie.models
        assert plan.base_of == dict.fromkeys(("german", *NAMES), "base")
        assert models["sql"].key == models["tax"].key
        answers = {name: tokens_of(coterie, name) for name in ("sql", "base", "tax", "german", "sql")}
        moved = coterie.status().moves.moved_bytes["disk->dram"]
        assert moved == sum(r.source.size_bytes for model in models.values() for r in model.layout.ranges)
        assert coterie.status().expert("sql").base == "base"
        assert coterie.texts["sql"].template is not None
    assert len(set(answers.values())) == 4
    assert {name: answers[name][:2] for name in NAMES} == {
        name: wanted[name][:2] for name in NAMES
    }  # 8 bits of a change
    near = models["base"].layout.size_bytes + max(model.layout.size_bytes for model in models.values() if model.base)
    with Coterie.open(root / "office", Options(near_bytes=near)) as coterie:  # room for one beside the base
        for name in ("tax", "german", "sql", "base", "tax", "sql"):
            assert tokens_of(coterie, name) == answers[name]
        assert coterie.status().moves.evictions["dram"] >= 3
        coterie.parts.all_weights.check_integrity()
    with Coterie.open(root / "office") as coterie:
        together = coterie.ask_all([greedy("how many rows?", name) for name in answers])
        assert {name: answer.token_ids for name, answer in zip(answers, together, strict=True)} == answers


def test_every_door(root: Path, tmp_path: Path) -> None:
    """A file that names the base, `check`, `diff`, a modelled machine of several sockets, the simulator, a merge."""
    office, path = root / "office", tmp_path / "office.toml"
    path.write_text(f"""
name = "office"
[[expert]]
name = "sql"
checkpoint = "{office}/sql"
base = "{office}/base"
[[expert]]
name = "tax"
checkpoint = "{office}/base"
adapter = "{office}/tax"
[[expert]]
name = "german"
checkpoint = "{office}/german"
base = "{office}/base"
""")
    checked = json.loads(run("check", path, "--json").stdout)
    assert {expert["base"] for expert in checked["experts"].values()} == {str(office / "base")}
    assert checked["near_bytes"] == sum(expert["weight_bytes"] for expert in checked["experts"].values())
    assert "worst" in run("diff", path, "--expert", "sql").stdout
    asked = ("--max-tokens", "2", "--json", "a")
    here = json.loads(run("run", path, "--expert", "sql", *asked).stdout)
    modelled = json.loads(run("run", path, "--expert", "sql", "--device", "modelled:sn40l-node", *asked).stdout)
    assert here["token_ids"] == modelled["token_ids"]
    few = ("--rate", "5", "--prompt", "20", "--tokens", "4", "--requests", "4")
    assert "bases" in run("simulate", path, "--machine", "sn40l-node", *few).stdout
    assert run("merge", path, tmp_path / "out").exit_code == 0
    merged = json.loads(run("check", tmp_path / "out", "--json").stdout)["experts"]
    assert {name: expert["base"] for name, expert in merged.items()} == {"sql": "", "tax": "", "german": ""}
    assert not list((tmp_path / "out").glob("*/delta*"))


def test_what_is_written_and_refused(root: Path, tmp_path: Path) -> None:
    base, tuned = root / "moved", root / "whole" / "sql"
    said = run("delta", base, tuned, tmp_path / "out")
    assert said.exit_code == 0, said.output
    assert "int4" in said.stdout
    assert "bits a weight" in said.stdout
    refused(run("delta", base, tuned, tmp_path / "out"), "exists already")
    refused(
        run("delta", base, tuned, tmp_path / "more", "--bits", "3"), "3 bits are not known", "one of 8, 6, 4, 4z, 2"
    )
    refused(run("delta", tmp_path / "out", tuned, tmp_path / "more"), "a fine-tune's difference from its base")
    refused(run("quantize", tmp_path / "out", tmp_path / "more"), "a fine-tune's difference from its base")
    shutil.copytree(root / "office" / "sql", tmp_path / "alone")
    refused(run("check", tmp_path / "alone"), "whole/base", "put it beside the delta")
    shutil.copytree(tuned, tmp_path / "base")
    with Coterie.open(tmp_path) as coterie:
        assert coterie.composition.names == ("base", "out")
        (why,) = coterie.composition.left_out.values()
        assert "alone/delta_config.json] is a difference from other weights than those of" in str(why)


@pytest.mark.parametrize("bits", ["2", "4z"])
def test_deltas_that_differ_in_products_alone_share_steps(root: Path, tmp_path: Path, bits: str) -> None:
    """Norms and tables are the base's: packed differences of two experts in one step, each as alone."""
    office = tmp_path / "office"
    base = Path(shutil.copytree(root / "moved", office / "base"))
    for seed, name in enumerate(NAMES, 5):
        tuned = write_tuned(tmp_path / name, base, seed, only="proj")
        assert run("delta", base, tuned, office / name, "--bits", bits).exit_code == 0
    prompts = ("how many rows?", "and columns?", "which tax?")
    with Coterie.open(office) as coterie:
        alone = {(name, prompt): coterie.ask(greedy(prompt, name)).token_ids for prompt in prompts for name in NAMES}
    with Coterie.open(office) as coterie:
        assert variant_groups_of(coterie.parts.engine._experts).keys() == set(NAMES)
        together = coterie.ask_all([greedy(prompt, name) for name, prompt in alone])
    assert [answer.token_ids for answer in together] == list(alone.values())
    assert len(set(alone.values())) == len(alone)
