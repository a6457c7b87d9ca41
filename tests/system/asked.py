"""What a composition's steps launch, beside what is compiled before they do: python -m tests.system.asked COMPOSITION

It is served on a GPU that is none, by the CPU's kernels, so tokens, batches and buckets are those of any device. What
Triton would launch is found for each step as on a GPU, and Triton is asked what it would compile. Prints a JSON object:

    asked    Triton's own keys of what was launched          here      the same by Wanted
    ahead    the keys of what `coterie compile` compiles     other     those for blocks of another size

Run as a program of its own: a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace

from tests.device.lazy_gpu import LazyDriver
from tests.device.native_kernels import NativeKernels
from triton.compiler.compiler import ASTSource, get_cache_invalidating_env_vars
from triton.runtime.cache import get_cache_key
from triton.runtime.jit import JITFunction

from coterie import Coterie
from coterie.api.assemble import Options
from coterie.api.types import Query
from coterie.cli import compile as command
from coterie.cli.opening import open_for_modelling
from coterie.devices.cuda import device as cuda
from coterie.devices.cuda import gpu
from coterie.devices.cuda.kernels import TritonKernels
from coterie.engine.assembly import plan
from coterie.engine.policy import Policy
from coterie.engine.request import ChoiceParams
from coterie.kernels.triton import compile_ahead

CAPABILITY, MULTIPROCESSORS = (9, 0), 1  # the lazy GPU's
POLICY = Policy(max_batch=6, max_step_tokens=200, max_guesses=3)
POOLINGS = "last", "mean"
FORM = '{"type": "object", "properties": {"rows": {"type": "integer"}}, "required": ["rows"]}'
PROMPTS = ("a", "how many rows are there?", "what is in the second column of it? " * 9)


class Both(NativeKernels):
    """The CPU's kernels, beside which Triton's are found and not launched."""

    def __init__(self, tiles):
        super().__init__()
        self._triton, self.launches = TritonKernels(tiles), []

    def scratch_bytes(self, host_rows, bucket):
        return max(self._triton.scratch_bytes(host_rows, bucket), 16)

    def row(self, host_rows, rows, index, bucket, scratch):
        self.launches += self._triton.row(host_rows, rows, index, bucket, scratch)
        return super().row(host_rows, rows, index, bucket, scratch)

    def feed(self, feed, state, rows, stops):
        self.launches.append(self._triton.feed(feed, state, rows, stops))
        return super().feed(feed, state, rows, stops)


def serve(folder, found):
    """Ask all experts, alone and at once."""
    gpu.open_driver = lambda index=0: LazyDriver(total_bytes=2**30, settle_s=2e-4)
    cuda.TritonKernels = lambda tiles: found.setdefault("kernels", Both(tiles))
    with Coterie.open(folder, Options(device="cuda", policy=POLICY)) as coterie:
        asked = [
            replace(Query.text(prompt, name), max_tokens=5, ignore_end=True)
            for prompt in PROMPTS
            for name in coterie.composition.names
        ]
        coterie.ask_all(asked)
        for query in asked[-2:]:
            coterie.ask(query)
        scored = ChoiceParams(top_logprobs=2, score_prompt=True)
        repeats = replace(asked[-1], prediction=PROMPTS[-1], max_tokens=40)  # several tokens are guessed for a step
        held = replace(asked[0], form=FORM, ignore_end=False, max_tokens=8)
        coterie.ask_all([repeats, held, *(replace(one, choice=scored) for one in asked)])
        for pooling in POOLINGS:
            for name, text in coterie.texts.items():
                coterie.texts[name] = replace(text, embedding=replace(text.embedding, pooling=pooling))
            for name in coterie.composition.names:
                coterie.embed(PROMPTS, name)


def triton_keys(launches):
    """What Triton's compiler is asked for by the first calls of launches, which then do nothing."""
    keys = set()

    def ask(self, key, signature, device, constants, options, attributes, warmup):
        _, _, _target, backend, _ = self.device_caches[device]
        source = ASTSource(self, signature, constants, attributes)
        parsed = backend.parse_options(dict(options.__dict__))  # as triton.compile does
        name = get_cache_key(source, backend, parsed, get_cache_invalidating_env_vars())
        keys.add(hashlib.sha256(name.encode()).hexdigest())

    JITFunction._do_compile = ask
    compile_ahead.compile_for(CAPABILITY)
    for launch in launches:
        launch()
    return keys


def main():
    """Of the composition that is named."""
    folder, found = sys.argv[1], {}
    serve(folder, found)
    launches = found["kernels"].launches
    maker = gpu.ahead_of("cuda", "9.0", MULTIPROCESSORS)
    wanted = command._wanted(open_for_modelling(folder)[1], maker, POLICY.max_batch, POLICY.max_step_tokens, None)
    command.plan = lambda *given: replace(made := plan(*given), block_bytes=2 * made.block_bytes)
    other = command._wanted(open_for_modelling(folder)[1], maker, POLICY.max_batch, POLICY.max_step_tokens, None)
    keys = {"ahead": wanted, "other": other, "here": compile_ahead.wanted_by(launches)}
    keys = {name: sorted({one.key(CAPABILITY) for one in some}) for name, some in keys.items()}
    names = {one.name for one in compile_ahead.wanted_by(launches)}
    print(json.dumps({**keys, "asked": sorted(triton_keys(launches)), "names": sorted(names)}))


if __name__ == "__main__":
    main()
