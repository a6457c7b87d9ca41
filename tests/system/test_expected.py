"""A device is told at start which steps will come: of each architecture, of adapters that share a base."""

from __future__ import annotations

from dataclasses import replace

from tests.system.adapting import ALL, trained_on
from tests.system.tiny import write_adapter, write_expert

from coterie.composition.composition import load_composition
from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.additions import add_expert
from coterie.engine.assembly import Settings, plan, wire
from coterie.engine.experts import open_experts
from coterie.engine.policy import Policy
from coterie.models.model import open_model
from coterie.spec.load import load_machine

POLICY = Policy(max_batch=3, max_step_tokens=7)


class Told(ModelledDevice):
    """Remembers what it was told."""

    def __init__(self, spec):
        super().__init__(spec)
        self.told = []

    def expect(self, exe, limits, block_bytes, shared=None):
        self.told.append((exe.program.graph.name, limits.sequences, limits.tokens, limits.context, block_bytes, shared))


def serve(folder, policy):
    models = open_experts(load_composition(str(folder)), synthetic=True)
    device = Told(load_machine("h100"))
    settings = Settings(policy=policy)
    parts = wire(models, plan(models, device.spec, settings), settings, device)
    return models, settings, parts, device.told


def test_each_architecture_once_and_steps_that_adapters_share(tmp_path):
    folder = tmp_path / "office"
    write_expert(folder / "base", 1, max_position_embeddings=300)
    write_expert(folder / "other", 2, max_position_embeddings=200, num_hidden_layers=1)
    write_expert(folder / "short", 7, max_position_embeddings=250)  # of base's architecture
    for seed, name in enumerate(("sql", "tax")):
        trained_on(write_adapter(folder / name, ALL, seed=seed), "/home/somebody/base")
    models, settings, parts, told = serve(folder, POLICY)
    block = parts.plan.block_bytes
    assert {one[1:5] for one in told} == {(3, 7, 300, block), (3, 7, 200, block)}
    mixed = [one for one in told if one[5] is not None]
    assert len(told) == 4, "base, other, adapted, and adapted with several in a step"
    assert len(mixed) == 1
    assert parts.served["sql"].exe.mixes(mixed[0][5])
    assert all(one[5] is None for one in serve(folder, replace(POLICY, share_steps=False))[3])

    del told[:]
    more = open_model(write_expert(tmp_path / "new", 3, max_position_embeddings=100, intermediate_size=40))
    add_expert(parts, models, "new", more, settings)
    assert [one[1:] for one in told] == [(3, 7, 100, block, None)]
    add_expert(parts, models | {"new": more}, "again", more, settings)
    assert len(told) == 1, "an architecture that is known"


def test_an_adapter_alone_on_its_base_shares_no_steps(tmp_path):
    folder = tmp_path / "office"
    for seed, name in enumerate(("ada", "bob")):
        write_expert(folder / name, seed)
        trained_on(write_adapter(folder / f"of-{name}", ALL, seed=seed), f"/home/somebody/{name}")
    assert [one[5] for one in serve(folder, POLICY)[3]] == [None, None]
