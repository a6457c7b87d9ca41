"""A small world to run the engine in: a device that draws each token from its whole context, read through KV blocks.

So a token is right only if every earlier one of its sequence is where the block table says, and every block of the
expert's weights is in place. Knows nothing about schedules.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from fake_device import FakeDevice, fake_layout

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.dtypes import DType
from coterie.engine.engine import Engine
from coterie.engine.kv import KVPool
from coterie.engine.policy import Policy
from coterie.engine.request import Request
from coterie.engine.served import Base, ServedExpert
from coterie.graph.program import KvShape
from coterie.memory.cache import ExpertCache

VOCAB = 50
FEW = 3  # so many tokens only does an expert draw whose name begins so, and so again and again the same ones
BLOCK = 64  # bytes of a KV block


def next_token(context, weights):
    """The token after `context` by an expert whose weights are called `weights`."""
    mixed = sum((index + 1) * (token + 3) for index, token in enumerate(context)) * 7 + sum(map(ord, weights))
    return mixed // 5 % FEW if weights.startswith("few") else mixed % VOCAB


class TellingDevice(FakeDevice):
    """Draws tokens from the KV blocks; a run fails an assertion when weights or KV are not what they should be."""

    def __post_init__(self):
        super().__post_init__()
        self.kv = {}
        self.runs = []
        self.broken = set()  # what fails: names of experts (their fetches), or "run"
        self.bad = ""  # an expert whose steps fail
        self.stalled = set()  # experts whose fetches do not get on
        self.is_slow_to_fail = False  # fetches behind a failed one fail only when one of them is waited for
        self.unfinished_gates = []

    def run(self, exe, binding, gates=None, steps=1, after=()):
        event = self._issue("compute", "run", [*after, *(gates or {}).values()], reads=binding.weights)
        self.runs.append((event, exe, binding, steps))
        self.unfinished_gates.append(sum(not self.done(gate) for gate in (gates or {}).values()))
        if steps > 1:
            assert binding.rows.sizes.T == binding.rows.sizes.B == binding.rows.sizes.R
        return event

    def runnable(self):
        return [event for event in super().runnable() if event.label not in self.stalled]

    def finish(self, event):
        if event.label in self.broken:
            self.fail(event, RuntimeError("the kernel trapped") if event.label == "run" else None)
            return
        for ran, exe, binding, steps in self.runs:
            if ran == event:
                variants = binding.variants.weights if binding.variants else ()
                if self.bad and self.bad in {self.content(extent)[0][0] for extent in (binding.weights, *variants)}:
                    self.fail(event, RuntimeError("the kernel trapped"))
                    return
                self.work[event.event_id].tokens = self._compute(exe, binding, steps)
        super().finish(event)

    def wait_any(self, events, until=None):
        if self.is_slow_to_fail and events[0].lane != "compute":
            self.is_slow_to_fail = False
            self._spread_failures()
        super().wait_any(events, until)

    def _spread_failures(self):
        later = [work for work in self.open if self.is_slow_to_fail and work.event.lane != "compute"]
        self.open = [work for work in self.open if work not in later]
        super()._spread_failures()
        self.open = later + self.open

    def _compute(self, exe, binding, steps):
        variants = binding.variants
        names = [self._name(exe, extent) for extent in (binding.weights, *(variants.weights if variants else ()))]
        own = [names[number] for number in variants.expert_B] if variants else names * binding.rows.sizes.B
        per_block, states = exe.kv.tokens_per_block(binding.block_bytes), exe.kv.state_blocks(binding.block_bytes)
        rows = binding.rows
        rows = replace(rows, block_tables_BM=[row[states:] for row in rows.block_tables_BM])
        tokens, positions = list(rows.tokens_T), list(rows.positions_T)
        drawn = []
        for _ in range(steps):
            for token, position, row in zip(tokens, positions, rows.sequence_T, strict=True):
                block = rows.block_tables_BM[row][position // per_block]
                self.kv[block, position % per_block] = (own[row], token, position)
            step = [self._draw(own[rows.sequence_T[row]], rows, row, positions[row], per_block) for row in rows.rows_R]
            drawn.append(step)
            if any(token in ends for token, ends in zip(step, rows.end_ids, strict=True)):
                break
            tokens, positions = step, [position + 1 for position in positions]
        return np.array(drawn, dtype=np.int32).reshape(len(drawn), len(rows.rows_R))

    def _name(self, exe, extent):
        """Whose weights these are: all of them."""
        content = self.content(extent)
        name = content[0][0]
        assert name in exe.names, (exe.names, content)
        assert content == [(name, block) for block in range(len(content))], (exe.names, content)
        return name

    def _draw(self, expert, rows, row, last, per_block):
        context = []
        for position in range(last + 1):
            block = rows.block_tables_BM[rows.sequence_T[row]][position // per_block]
            name, token, at = self.kv[block, position % per_block]
            assert (name, at) == (expert, position), "another sequence wrote into this block"
            context.append(token)
        return next_token(context, expert)


class GuessedDevice(TellingDevice):
    """Its tokens are worth guessing."""

    def synthetic(self):
        return False


class Words:
    """A detokenizer: each token is one or two letters, so stop strings can begin anywhere."""

    reasoning_tokens = 0

    def push(self, token):
        return "abcdefghij"[token % 10] * (1 + token // 40)

    def flush(self):
        return ""

    def take_reasoning(self):
        return ""


def text_of(tokens):
    return "".join(Words().push(token) for token in tokens)


def world(sizes, near_blocks, kv_blocks=64, policy=None, variants=(), recurrent=False, drafts=(), **settings):
    """An engine over experts {name: blocks of weights}, and its device and cache; `variants` are of one base.

    With recurrent ones, a block of each of their sequences has what is of all its tokens.
    `drafts`: who guesses for whom.
    """
    device = TellingDevice()
    cache = ExpertCache(device, {"dram": near_blocks * BLOCK_BYTES})
    pool = KVPool(device.reserve("dram", kv_blocks * BLOCK), BLOCK)
    experts = {name: expert(name, blocks) for name, blocks in sizes.items()}
    if variants:
        base = Base(fake_layout("base", 1), device.reserve("dram", BLOCK_BYTES))
        exe = experts[variants[0]].exe
        exe.kv = replace(exe.kv, state_units=int(recurrent), unit_bytes=BLOCK * recurrent)
        exe.names, exe.mixes = variants, lambda shared: True
        experts |= {name: replace(experts[name], exe=exe, kv=exe.kv, base=base) for name in variants}
    experts |= {name: replace(experts[name], draft=small) for name, small in dict(drafts).items()}
    engine = Engine(device, cache, pool, experts, policy or Policy(**settings))
    return SimpleNamespace(engine=engine, device=device, cache=cache, pool=pool, experts=experts)


def expert(name, blocks, max_context=40):
    kv = KvShape(num_layers=1, num_kv_heads=1, head_dim=1 + len(name) % 3 + blocks % 2, dtype=DType.F16)
    exe = SimpleNamespace(
        names=(name,), kv=kv, program=SimpleNamespace(weights=(), regions=(), samples_tokens=True, bidirectional=False)
    )
    return ServedExpert(name, fake_layout(name, blocks, num_stages=3), exe, kv, max_context, VOCAB)


def ask(request_id, expert_id, prompt=(1, 2, 3), max_tokens=4, **fields):
    fields.setdefault("ignore_end", True)
    return Request(request_id, expert_id, tuple(prompt), max_tokens, **fields)


def alone(request, max_context=40):
    """The tokens that a request gets when nothing else is going on."""
    context = list(request.prompt_ids)
    while len(context) < min(len(request.prompt_ids) + request.max_tokens, max_context):
        context.append(next_token(context, request.expert_id))
        if context[-1] in request.end_ids and not request.ignore_end:
            break
    return tuple(context[len(request.prompt_ids) :])


def run_all(world, limit=5000):
    """Step until idle; return each request's tokens, text and last output."""
    results = {}
    for _ in range(limit):
        if world.engine.idle:
            break
        for output in world.engine.step():
            got = results.setdefault(output.request_id, SimpleNamespace(tokens=(), text="", last=None))
            assert got.last is None or got.last.finish_reason is None, "an output after the last one"
            got.tokens, got.text, got.last = got.tokens + output.token_ids, got.text + output.text, output
        world.engine.check_integrity()
        world.cache.check_integrity()
    assert world.engine.idle, f"not idle after {limit} steps"
    assert world.pool.free_blocks == world.pool.num_blocks or settle(world)
    return results


def settle(world):
    world.engine.step()
    return world.pool.free_blocks == world.pool.num_blocks


def kinds(world, kind):
    """The entries of one kind in the decision log, without the kind."""
    return [entry[1:] for entry in world.engine.decisions if entry[0] == kind]
