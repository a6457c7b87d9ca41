"""One shared runner: steps prompts through a model on a device or on the reference, with explicit rows.

stepper = Stepper(DeviceBackend(device, model))          # or ReferenceBackend(model)
sequence = stepper.sequence()
logits = stepper.feed((sequence, [1, 2, 3]))             # [tokens fed, V]
"""

from importlib.util import find_spec

import numpy as np

from coterie.device import Binding, Rows, Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.engine.served import Base, places_of
from coterie.graph.compile import compile_graph
from coterie.graph.reference import KvState, Reference
from coterie.models.model import load_weights_f32

LOGITS, TOKENS = "head/logits", "next_tokens"
NUM_BLOCKS = 128


def by_name(rows):
    """Rows of a step as the interpreter takes them."""
    return {
        "tokens": rows.tokens_T,
        "positions": rows.positions_T,
        "sequence": rows.sequence_T,
        "block_tables": rows.block_tables_BM,
        "rows": rows.rows_R,
        "types": rows.types_T,
    }


class ReferenceBackend:
    """The NumPy interpreter."""

    def __init__(self, model, state=None):
        self.model = model
        self.block_bytes = block_bytes_for(model)
        self.state = state or state_of(model, self.block_bytes)
        self._reference = Reference(model.graph, load_weights_f32(model))

    def beside(self, model):
        """Another expert; of the same architecture, it shares the KV pages."""
        return ReferenceBackend(model, self.state if model.key == self.model.key else None)

    def logits(self, rows):
        """Run one step and return the logits of its sampled rows [R, V]."""
        return self._run(rows)[LOGITS]

    def tokens(self, rows, steps=1):
        """Run steps and return the sampled tokens [steps, R]; the interpreter takes one step at a time."""
        if steps != 1:
            raise ValueError(f"{steps} steps at once")
        return self._run(rows)[TOKENS][None]

    def close(self):
        """Nothing to give back."""

    def _run(self, rows):
        return self._reference.run(by_name(rows), rows.sampling, self.state)


class DeviceBackend:
    """A device of the seam: programs loaded once, weights fetched range by range as the cache would."""

    def __init__(self, device, model, rule_set="cache", shared=None):
        self.device, self.model, self.rule_set = device, model, rule_set
        self.exe = device.load(compile_graph(model.graph, rule_set))
        self._inspected = device.load(compile_graph(model.graph, rule_set, share_buffers=False))
        self._weights = fetch(device, model.layout)
        self._base = shared._base if shared and model.base is not None else base_of(device, model)
        self.block_bytes = shared.block_bytes if shared else block_bytes_for(model)
        self._kv = shared._kv if shared else device.reserve(device.spec.run_tier, NUM_BLOCKS * self.block_bytes)

    def beside(self, model):
        """Another expert on the same device and KV slab."""
        return DeviceBackend(self.device, model, self.rule_set, shared=self)

    def binding(self, rows):
        """Everything that a step needs."""
        offsets, shared = places_of(self.exe.program.weights, self.model.layout, self._base)
        return Binding(self._weights, offsets, self._kv, self.block_bytes, rows, shared)

    def logits(self, rows):
        """Run one step and return the logits of its sampled rows [R, V]."""
        return np.array(self.device.inspect(self._inspected, self.binding(rows))[LOGITS])

    def tokens(self, rows, steps=1):
        """Run steps and return the sampled tokens [steps, R]."""
        event = self.device.run(self.exe, self.binding(rows), steps=steps)
        wait(self.device, event)
        return self.device.tokens(event)

    def move_weights(self):
        """Fetch the weights to another place, and spoil those where they were."""
        before, self._weights = self._weights, fetch(self.device, self.model.layout)
        self.device.memory(before)[:] = 0xFF  # not a number, in every float type

    def tokens_behind_gates(self, rows):
        """Spoil the weights, start to fetch them, and at once run a step whose stages wait for theirs."""
        self.device.memory(self._weights)[:] = 0xFF  # not a number, in every float type
        ranges = self.model.layout.ranges
        gates = {
            placed.stage: self.device.fetch(self._weights.view(placed.offset, placed.source.size_bytes), placed.source)
            for placed in ranges
        }
        event = self.device.run(self.exe, self.binding(rows), gates=gates)
        wait(self.device, event)
        return self.device.tokens(event)

    def close(self):
        """Close the device."""
        self.device.close()


def on_cpu(model, rule_set="cache", **options):
    """A CPU device of its own for a model."""
    return DeviceBackend(CpuDevice(**options), model, rule_set)


def on_cuda(model, rule_set="cache", **options):
    """The CUDA device on a GPU that is none, with the CPU's kernels: its bytes, addresses, rows and their order."""
    return DeviceBackend(cuda(**{"driver": LazyDriver(settle_s=2e-4), **options}), model, rule_set)


BACKENDS = {"reference": ReferenceBackend, "cpu": on_cpu}
if find_spec("torch") is not None:
    from tests.device.cuda_devices import cuda
    from tests.device.lazy_gpu import LazyDriver

    BACKENDS |= {"cuda": on_cuda}


def block_bytes_for(model):
    """Blocks of at least 5 tokens, aligned to 512 bytes, so that pages end in the middle of prompts."""
    return -(-max(5 * model.kv.bytes_per_token, model.kv.unit_bytes) // 512) * 512


def state_of(model, block_bytes):
    """The reference's KV pages, and what else sequences keep."""
    kv = model.kv
    return KvState(model.graph, NUM_BLOCKS, kv.tokens_per_block(block_bytes), kv.state_blocks(block_bytes))


def wait(device, *events):
    """Wait for all events and raise the first failure."""
    for event in events:
        while not device.done(event):
            device.wait_any([event])
        if failure := device.failure(event):
            raise failure


def base_of(device, model):
    """The weights of an adapter's base in a slab of their own; None for any other model."""
    return None if model.base is None else Base(model.base.layout, fetch(device, model.base.layout))


def fetch(device, layout):
    """Read a layout's ranges into a slab of its own."""
    slab = device.reserve(device.spec.run_tier, layout.size_bytes)
    device.place(slab, layout.spans)
    events = [
        device.fetch(slab.view(placed.offset, placed.source.size_bytes), placed.source) for placed in layout.ranges
    ]
    wait(device, *events)
    return slab


class Sequence:
    """A prompt that grows: its KV blocks and its length so far."""

    def __init__(self):
        self.blocks, self.length = [], 0


class Stepper:
    """Hands out KV blocks, in an order that is not the order of memory, and builds the rows of each step."""

    def __init__(self, backend, first_block=1, num_blocks=NUM_BLOCKS - 1, seed=0):
        self.backend = backend
        order = np.random.default_rng(seed).permutation(np.arange(first_block, first_block + num_blocks))
        self._free = [int(block) for block in order]

    def sequence(self):
        """A new, empty sequence."""
        return Sequence()

    def rows(self, *parts, sample="all", sampling=None, ahead=0):
        """Rows of one step that feeds each (sequence, tokens); `ahead` reserves room for later steps."""
        tokens, positions, owners, sampled = [], [], [], []
        for row, (sequence, new) in enumerate(parts):
            start, sequence.length = sequence.length, sequence.length + len(new)
            kv, block_bytes = self.backend.model.kv, self.backend.block_bytes
            while len(sequence.blocks) < kv.blocks_for(sequence.length + ahead, block_bytes):
                sequence.blocks.append(self._free.pop())
            first = len(tokens)
            tokens += new
            positions += range(start, sequence.length)
            owners += [row] * len(new)
            sampled += range(first, len(tokens)) if sample == "all" else [len(tokens) - 1]
        width = max(len(sequence.blocks) for sequence, _ in parts)
        tables = [sequence.blocks + [0] * (width - len(sequence.blocks)) for sequence, _ in parts]
        return Rows(
            tokens_T=np.array(tokens, np.int32),
            positions_T=np.array(positions, np.int32),
            sequence_T=np.array(owners, np.int32),
            block_tables_BM=np.array(tables, np.int32),
            lengths_B=np.array([sequence.length for sequence, _ in parts], np.int32),
            rows_R=np.array(sampled, np.int32),
            sampling=(sampling or Sampling(),) * len(sampled),
            end_ids=((),) * len(sampled),
        )

    def feed(self, *parts):
        """One step; logits [T, V] of every token fed."""
        return self.backend.logits(self.rows(*parts))

    def greedy(self, prompt, num_tokens, steps=1):
        """Tokens that follow a prompt, `steps` at a time."""
        sequence = self.sequence()
        found = [int(self.backend.tokens(self.rows((sequence, prompt), sample="last"))[0, 0])]
        while len(found) < num_tokens:
            count = min(steps, num_tokens - len(found))
            rows = self.rows((sequence, [found[-1]]), sample="last", ahead=count)
            new = self.backend.tokens(rows, count)[:, 0]
            sequence.length += len(new) - 1
            found += [int(token) for token in new]
        return found


def prompt_logits(backend, prompt):
    """Logits [tokens, V] of a prompt at once, alone."""
    stepper = Stepper(backend)
    return stepper.feed((stepper.sequence(), prompt))


def chunks(tokens, size):
    """Pieces of at most `size` tokens."""
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]


def in_ways(stepper, prompt):
    """Logits [tokens, V] of a prompt: at once, beside the beginning of another one, and in three pieces."""
    alone = stepper.feed((stepper.sequence(), prompt))
    first, second = stepper.sequence(), stepper.sequence()
    both = stepper.feed((first, prompt[:5]), (second, prompt))
    pieces = [both[:5], stepper.feed((first, prompt[5:6])), stepper.feed((first, prompt[6:]))]
    return alone, both[5:], np.concatenate(pieces)


def in_turns(backend, models, prompt, count):
    """So many greedy tokens of each of two models on one device, a token of each in turn; `backend` has the first."""
    backends = [backend, backend.beside(models[1])]
    steppers = [Stepper(one, 1 + 20 * i, 20) for i, one in enumerate(backends)]
    sequences, found = [stepper.sequence() for stepper in steppers], [[], []]
    for step in range(count):
        for i, stepper in enumerate(steppers):
            fed = prompt if step == 0 else [found[i][-1]]
            found[i].append(int(backends[i].tokens(stepper.rows((sequences[i], fed), sample="last"))[0, 0]))
    return found
