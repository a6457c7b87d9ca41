"""Real and modelled devices, one policy: the same decisions for the same workload, and a real run replayed exactly.

(a) Lengths fixed, no overlap, no prefetch: no decision depends on how long anything takes, so the logs are equal.
(b) Everything on: the durations of a real run, given to the modelled device, lead to the log of that run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from tests.system.tiny import lengthen, write_adapter, write_expert

from coterie.api.assemble import Options
from coterie.core.errors import UsageError
from coterie.core.trace import read_trace, write_trace
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.assembly import Plan, wire
from coterie.engine.policy import Policy
from coterie.engine.request import Request, SamplingParams
from coterie.models.fine_tunes.adapted import open_adapted
from coterie.models.model import open_model
from coterie.spec.load import load_machine
from coterie.spec.this_machine import this_machine

SHAPES = {
    "small": {"num_hidden_layers": 2},
    "deep": {"num_hidden_layers": 5},
    "wide": {"hidden_size": 64, "intermediate_size": 160, "num_key_value_heads": 1},
}
PINNED = "small-1"
KV_BLOCK_BYTES = 4096
KV_BLOCKS = 60

# Without guesses: how many there are depends on the tokens, and here some devices make theirs up.
STEADY = Policy(
    age_bound=3,
    max_batch=4,
    max_step_tokens=9,
    turn_steps=8,
    quantum_steps=2,
    overlap=False,
    prefetch=0,
    max_guesses=0,
)
EVERYTHING = replace(STEADY, overlap=True, prefetch=1)


@dataclass(frozen=True)
class Move:
    """What happens before a step: a request, a pin or an unpin."""

    step: int
    what: str
    expert: str
    number: int
    prompt: tuple[int, ...] = ()
    max_tokens: int = 0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two random experts of each shape."""
    root = tmp_path_factory.mktemp("experts")
    names = [f"{shape}-{i}" for shape in SHAPES for i in range(2)]
    folders = [write_expert(root / name, seed, **SHAPES[name[:-2]]) for seed, name in enumerate(names)]
    return {folder.name: open_model(folder) for folder in folders}


@pytest.fixture(scope="module")
def adapted(models, tmp_path_factory):
    """The same without one of each shape, and six adapters: of an expert that is there too, and of one that is not."""
    root, found = tmp_path_factory.mktemp("adapters"), {name: models[name] for name in (PINNED, "deep-0", "wide-0")}
    for number in range(6):
        base = models["deep-0" if number % 2 else "deep-1"]
        modules = ("mlp.down_proj", "self_attn.q_proj")[: 1 + number % 3 % 2]
        folder = write_adapter(root / f"adapter-{number}", modules, SHAPES["deep"], seed=number)
        found[folder.name] = open_adapted(base, folder)
    return found


def workload(models, seed):
    """Requests in bursts, most for a few experts, with one expert pinned for a while."""
    rng = np.random.default_rng(seed)
    names = sorted(models)
    moves, step = [], 0
    for number in range(40):
        step += int(rng.choice([0, 0, 0, 1, 6]))
        expert = names[min(int(rng.exponential(3)), len(names) - 1)]
        prompt = tuple(int(token) for token in rng.integers(0, 256, rng.integers(1, 30)))
        moves.append(Move(step, "ask", expert, number, prompt, int(rng.integers(1, 14))))
    return [*moves, Move(0, "pin", PINNED, 0), Move(step - 2, "unpin", PINNED, 0)]


def serve(device, models, policy, moves, record=0, near_bytes=0):
    """Run a workload to its end as it is served; return the parts and each request's tokens."""
    # Just enough that the largest fits on one side of the pinned one, wherever that is.
    largest = max(model.layout.size_bytes for model in models.values())
    near_bytes = near_bytes or 2 * largest + models[PINNED].layout.size_bytes
    options = Options(policy=policy, record=record)
    sizes = {name: model.layout.size_bytes for name, model in models.items()}
    made = Plan(device.spec, sizes, near_bytes, KV_BLOCKS * KV_BLOCK_BYTES, KV_BLOCK_BYTES)
    parts = wire(models, made, options, device)
    engine, cache = parts.engine, parts.cache
    tokens, step, left = {}, 0, sorted(moves, key=lambda move: (move.step, move.number))
    while left or not engine.idle:
        while left and (left[0].step <= step or engine.idle):
            act(engine, cache, left.pop(0))
        for output in engine.step():
            assert output.error is None
            tokens[output.request_id] = tokens.get(output.request_id, ()) + output.token_ids
        engine.check_integrity()
        step += 1
    cache.check_integrity()
    return SimpleNamespace(parts=parts, engine=engine, cache=cache, tokens=tokens, log=list(engine.decisions))


def act(engine, cache, move):
    if move.what == "pin":
        cache.pin(move.expert)
    elif move.what == "unpin":
        cache.unpin(move.expert)
    else:
        sampling = SamplingParams(temperature=0.8 * (move.number % 2), seed=move.number)
        request = Request(f"r{move.number}", move.expert, move.prompt, move.max_tokens, sampling, ignore_end=True)
        engine.submit(request)


def serve_everywhere(models, policy, moves, **how):
    """What `serve` gives on each kind of device, by its name."""
    devices = {
        "cpu": CpuDevice(threads=1),
        "modelled": ModelledDevice(load_machine("toy")),
        "modelled with numerics": ModelledDevice(load_machine("toy"), numerics=CpuDevice(threads=1)),
    }
    served = {}
    for name, device in devices.items():
        served[name] = serve(device, models, policy, moves, **how)
        device.close()
    return served


def entries(log, kind):
    return [entry for entry in log if entry[0] == kind]


def check_replayed(models, policy, moves, near_bytes=0):
    """That a real run's durations give its own log; the run, and them."""
    device = CpuDevice(threads=1)
    real = serve(device, models, policy, moves, 1 << 16, near_bytes)
    durations = real.parts.recorded().durations()
    device.close()
    again = serve(ModelledDevice(this_machine(), durations=durations), models, policy, moves, 0, near_bytes)
    assert again.log == real.log
    return real, durations


@pytest.mark.parametrize("schedule", ["grouped", "fcfs"])
@pytest.mark.parametrize("seed", [3, 6])
def test_decisions_are_the_same_on_every_device(models, schedule, seed):
    moves = workload(models, seed)
    policy = replace(STEADY, schedule=schedule)
    served = serve_everywhere(models, policy, moves)
    real = served["cpu"]
    assert served["modelled"].log == real.log
    assert served["modelled with numerics"].log == real.log
    assert served["modelled with numerics"].tokens == real.tokens
    lengths = {f"r{move.number}": move.max_tokens for move in moves if move.what == "ask"}
    assert {name: len(tokens) for name, tokens in real.tokens.items()} == lengths
    assert len(entries(real.log, "fetch")) > len(models)
    assert len(entries(real.log, "evict")) > 3
    assert any(rows == 0 for (_, _, _, rows) in entries(real.log, "run"))


@pytest.mark.parametrize("seed", [pytest.param(3, marks=pytest.mark.long), 6])
def test_decisions_about_adapters_are_the_same_on_every_device(adapted, seed):
    """Adapters come and go; their bases do not, be they experts or not. A run replayed gives its own log here too."""
    moves = [move for move in workload(adapted, seed) if move.what == "ask"]
    near_bytes = adapted["wide-0"].layout.size_bytes + 4096
    served = serve_everywhere(adapted, STEADY, moves, near_bytes=near_bytes)
    real = served["cpu"]
    assert served["modelled"].log == served["modelled with numerics"].log == real.log
    assert served["modelled with numerics"].tokens == real.tokens
    fetched, evicted = ({entry[1] for entry in entries(real.log, kind)} for kind in ("fetch", "evict"))
    assert "deep-0" not in fetched | evicted
    assert all(sum(name.startswith("adapter") for name in names) > 2 for names in (fetched, evicted))
    assert any(name == "deep-0" for (_, name, *_) in entries(real.log, "run"))
    check_replayed(adapted, EVERYTHING, moves, near_bytes)


@pytest.fixture(scope="module")
def office(models, tmp_path_factory):
    """An expert that is no adapter, and six adapters of one base and one program."""
    root, found = tmp_path_factory.mktemp("office"), {"small-0": models["small-0"]}
    for number in range(6):
        modules = ("mlp.down_proj", "self_attn.q_proj")
        folder = write_adapter(root / f"variant-{number}", modules, SHAPES["deep"], seed=number)
        if number % 2:
            lengthen(folder / "adapter_model.safetensors")  # so that its offsets are others
        found[folder.name] = open_adapted(models["deep-1"], folder)
    return found


@pytest.mark.parametrize("near_blocks", [4, pytest.param(12, marks=pytest.mark.long)])
def test_decisions_about_variants_are_the_same_on_every_device(office, near_blocks):
    """Adapters share steps, prompts beside decode; they come and go meanwhile, and each token is as without that."""
    moves = [move for move in workload(office, 6) if move.what == "ask"]
    near_bytes = office["small-0"].layout.size_bytes + 4096 * near_blocks
    served = serve_everywhere(office, STEADY, moves, near_bytes=near_bytes)
    real = served["cpu"]
    assert served["modelled"].log == served["modelled with numerics"].log == real.log
    assert served["modelled with numerics"].tokens == real.tokens
    together = [entry for entry in entries(real.log, "run") if len(entry) > 4]
    assert any(len(entry) > 5 for entry in together)
    assert any(tokens > rows for _, _, tokens, rows, *_ in together), "a prompt beside others"
    assert any(name.startswith("variant") for _, name, _ in entries(real.log, "evict"))
    device = CpuDevice(threads=1)
    apart = serve(device, office, replace(STEADY, share_steps=False), moves, near_bytes=near_bytes)
    assert apart.tokens == real.tokens
    assert len(entries(apart.log, "run")) > len(entries(real.log, "run"))
    device.close()
    check_replayed(office, EVERYTHING, moves, near_bytes)


def test_a_pin_changes_what_is_evicted(models):
    moves = workload(models, 6)
    logs = []
    for kept in (moves, [move for move in moves if move.what == "ask"]):
        device = ModelledDevice(load_machine("toy"))
        logs.append(serve(device, models, STEADY, kept).log)
    assert entries(logs[0], "evict") != entries(logs[1], "evict")


@pytest.mark.parametrize("seed", [3, 6])
@pytest.mark.parametrize("max_steps", [1, 4])
def test_a_real_run_replayed_gives_its_own_log(models, seed, max_steps):
    # The last request is alone, whatever the machine's speed, so several steps are run at once.
    moves = [*workload(models, seed), Move(10**6, "ask", PINNED, 40, (1, 2, 3), 13)]
    policy = replace(EVERYTHING, max_steps=max_steps)
    real, durations = check_replayed(models, policy, moves)
    assert len(entries(real.log, "fetch")) > len(models)
    assert any(work.args.get("steps", 1) > 1 for work in real.parts.recorded().works) == (max_steps > 1)
    # Equal logs prove something only if the durations matter: with slow fetches it is another one, of other work.
    slow = {lane: [s + (lane != "compute") for s in [*seconds, *seconds]] for lane, seconds in durations.items()}
    other = serve(ModelledDevice(this_machine(), durations=slow), models, policy, moves)
    assert other.log != real.log


def test_now_is_right_after_idling_and_what_was_not_asked_for_is_not_kept(models):
    device = ModelledDevice(load_machine("toy"))
    served = serve(device, models, EVERYTHING, workload(models, 3))
    device.wait_any([], until=device.now() + 100)
    assert served.parts.device.now() == device.now() > 100
    act(served.engine, served.cache, Move(0, "ask", PINNED, 999, (1, 2, 3), 2))
    timings = [o.timings for _ in range(20) for o in served.engine.step() if o.timings]
    assert timings[0].arrival_s > 100
    assert timings[0].ttft_s < 1
    assert served.parts.recording is None
    with pytest.raises(UsageError, match="nothing was recorded"):
        served.parts.recorded()


def test_a_record_is_bounded_and_says_what_it_dropped(models):
    served = serve(ModelledDevice(load_machine("toy")), models, EVERYTHING, workload(models, 3), record=20)
    recording = served.parts.recorded()
    assert len(recording.works) == 20
    total = sum(use.works for use in recording.use.values())
    assert recording.dropped == total - 20 + 40 - 20
    assert served.parts.trace().notes["dropped"] == recording.dropped
    with pytest.raises(UsageError, match=f"{total} works were issued but 20"):
        recording.durations()


def test_a_trace_shows_lanes_and_a_fetch_under_another_experts_step(models, tmp_path):
    policy = replace(EVERYTHING, max_steps=1)
    served = serve(ModelledDevice(load_machine("toy")), models, policy, workload(models, 3), record=1 << 16)
    path = tmp_path / "trace.json"
    write_trace(path, served.parts.trace())
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "b", "e"}
    assert all(
        {"name", "cat", "ts", "dur", "pid", "tid", "args"} <= event.keys() for event in events if event["ph"] == "X"
    )
    got = read_trace(path)
    assert set(got.lanes) == {"compute", "disk->dram"}
    by_lane = {lane: sorted((s for s in got.slices if s.lane == lane), key=lambda s: s.start_s) for lane in got.lanes}
    for slices in by_lane.values():
        assert all(a.end_s <= b.start_s + 1e-8 for a, b in pairwise(slices))
    steps, fetches = by_lane["compute"], by_lane["disk->dram"]
    assert sum(s.args["tokens"] for s in steps) == sum(n for (_, _, n, _) in entries(served.log, "run"))
    stages = {f"{name} {r.stage}" for name, model in models.items() for r in model.layout.ranges}
    assert {f.name for f in fetches} <= stages
    assert sum(f.args["bytes"] for f in fetches) == served.parts.recorded().use["disk->dram"].moved_bytes
    overlapping = [
        (fetch, step)
        for fetch in fetches
        for step in steps
        if fetch.start_s < step.end_s and step.start_s < fetch.end_s and fetch.name.split()[0] != step.name.split()[0]
    ]
    assert overlapping, "no fetch of one expert ran under a step of another"
    assert sum(a.kind == "request" for a in got.asyncs) == 40
    assert sum(a.kind == "switch" for a in got.asyncs) == len(entries(served.log, "fetch"))


def test_with_everything_on_durations_matter(models):
    moves = workload(models, 0)
    logs = []
    for fetch_s in (1e-5, 1e-2):
        durations = {"disk->dram": [fetch_s] * 1000, "compute": [1e-4] * 1000}
        logs.append(serve(ModelledDevice(this_machine(), durations=durations), models, EVERYTHING, moves).log)
    assert logs[0] != logs[1]
