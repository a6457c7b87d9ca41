"""All tests and benches for a first run on a GPU, the most valuable first, each part with its own time limit.

    kernels    compiles what the benches launch on all cores, so that no later part waits for a compiler
    aims       correctness (diff); decode of a 1B and a 7B, prefill, switch with a trace; calibration, and how well
               the modelled GPU predicts these; some experts
    correct    tests of the driver and the device contract, before further measurements
    beside     transformers, compared in the benches; fusion; as many experts as the host holds, with transformers
    measured   alternative ways to run a step; packed weights
    others     gated delta nets, latent attention and mixture-of-experts layers
    last       persistent kernels, tested and measured: their blocks wait for each other, which may hang a GPU

A part that fails or times out does not stop the later ones, and results of finished parts survive an early end.
Each part prints a line of JSON: how it ended, and its numbers. In the folder: NAME.txt is all that a part printed,
NAME.json a bench's result, machine.toml the calibrated machine, summary.jsonl a line for each part of any run, cache/
the compilers' caches for later parts and runs. Parts of a run share generated weights (coterie.bench.kept), which are
removed at its end.

    python -m benchmarks.first_gpu --out gpu-results        exit 0: all parts ran; 1: some did not; 2: there is no GPU
    python -m benchmarks.first_gpu --out gpu-results --rest           only parts that have not run in this folder

Knows nothing about how anything is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from coterie.bench import kept

ROOT = Path(__file__).resolve().parents[1]
COTERIE = (sys.executable, "-m", "coterie")  # works without an installed script, with the package on the path
NO_GPU, SUMMARY = "none for ", "summary.jsonl"
# Limits, not estimates: on an H100 with 16 cores a bench took 20 to 25 s, most of it set-up, and all tests but those of
# persistent kernels 23 s in 7 processes. `coe`, `calibrate` and packed weights compile most: more than 34, 80 and 42 to
# 80 s there, kernel by kernel. No GPU has run them since kernels are compiled in parallel.
MINUTES, INFO_S = 13.0, 180.0  # INFO_S: on a freshly started machine, PyTorch is first read from a cold disk
COMPILE_S = 240.0  # for parts that compile long: whole models, or persistent kernels (10 to 40 s a bucket on two cores)
# A 7B expert: 13.5 GB to write and to read again, in memory or on a disk of unknown speed; the rest of that part takes
# 25 s, as for a small expert.
LARGE_S, LARGE_BYTES = 120.0, 14 * 2**30
MEMORY = Path("/dev/shm")  # a file system in memory, if there is one
MIN_S = 5.0  # a part with less time left than this is not started
ENDED = 128 + signal.SIGTERM  # exit status after SIGTERM
GRACE_S = 3.0  # between SIGTERM and SIGKILL
STUCK_S = 60  # a test that takes longer dumps its threads' stacks: is it compiling, or waiting for the GPU?
STUCK = ("-o", f"faulthandler_timeout={STUCK_S}")
# Tests of the device mostly wait for compilers: on that H100 79 tests took 23 s in 7 processes; there are 145 now.
SPREAD = ("-n", "8") if find_spec("xdist") else ()
# In order: compile kernels instead of interpreting them, whatever the shell says; let tests use the GPU; table width.
ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "0", "COTERIE_TEST_GPU": "1", "COLUMNS": "160"}
PACKED = ("int8", "int4")
DECODED = (*PACKED, "int6")
DEVICE_TESTS = ROOT / "tests" / "device"
TESTS = (str(DEVICE_TESTS / "test_gpu.py"), *sorted(map(str, DEVICE_TESTS.glob("test_contract*.py"))))
TESTS_OF_BRANCHES = str(DEVICE_TESTS / "test_gpu_branches.py")
TESTS_OF_NETS = str(DEVICE_TESTS / "test_gpu_nets.py")
TESTS_OF_LATENT = str(DEVICE_TESTS / "test_gpu_latent.py")


@dataclass(frozen=True, slots=True)
class Part:
    """A command and its time limit.

    `own_bytes`: size of files that only this part uses, and that may be in memory, since it measures no disk.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    own_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended: `ok`, or the reason; `result`: whether it gave a result."""

    name: str
    status: str
    seconds: float
    result: bool
    command: str


def parts(folder: Path, device: str, shape: str, coterie: Sequence[str] = COTERIE) -> tuple[Part, ...]:
    """All parts, in order."""
    on, peer = ("--device", device, "--shape", shape), ("--peer", "transformers")
    trace, machine = folder / "trace" / "switch.json", folder / "machine.toml"
    decode = ("bench", "decode", *on, "--context", "512")
    prefill = ("bench", "prefill", *on, "--prompt", "2048")
    switch = ("bench", "switch", *on, "--prompt", "512", "--experts", "2")
    served = ("bench", "coe", *on, "--mix", "zipf", "--in-flight", "8", "--requests")
    coe = (*served, "60", "--experts", "8")
    # Fewer requests: a peer runs extra trials to choose how to alternate, and launches each token op by op.
    some, all_that_fit = (*served, "30", "--experts", "8"), (*served, "40")
    beside = {"decode": decode, "coe": some, "switch": switch, "prefill": prefill}
    calibrate = ("info", "--calibrate", "--device", device, "--out", str(machine), "--shape", shape)
    kernels = (sys.executable, "-m", "benchmarks.gpu_kernels", "--device", device, "--shape", shape)
    compared = (sys.executable, "-m", "benchmarks.gpu_ways", "--device", device, "--shape", shape)
    ways = {"ways-batch": (*compared, "--batch", "8"), "ways-int4": (*compared, "--weights", "int4", "--batch", "4")}
    large = (*coterie, "bench", "decode", "--device", device, "--shape", "7b", "--context", "512")
    first = {
        "diff": (("diff", "demo", "--expert", "arithmetic", "--device", device), 40),
        "decode": (decode, 60),
    }
    later = {
        "prefill": (prefill, 60),
        "switch": ((*switch, "--trace", str(trace)), 60),
        "trace": (("trace", str(trace)), 15),
        "calibrate": (calibrate, 150),
        "validate": (("validate", "--results", str(folder), "--rows"), 30),
    }
    packed = {f"decode-{weights}": ((*decode, "--weights", weights), 120) for weights in DECODED}
    then = {f"prefill-{weights}": ((*prefill, "--weights", weights), 120) for weights in PACKED}
    branches = ("bench", "decode", "--device", device, "--shape", "moe", "--context", "512")
    walked = ("bench", "fusion", *on, "--way", "fused/device", "--way", "fused/persistent")
    tests = (sys.executable, "-m", "pytest", "-v", *STUCK, "--rootdir", str(ROOT))
    return (
        Part("kernels", kernels, 120),
        *(Part(name, (*coterie, *command), limit_s) for name, (command, limit_s) in first.items()),
        Part("decode-7b", large, LARGE_S, LARGE_BYTES),
        *(Part(name, (*coterie, *command), limit_s) for name, (command, limit_s) in later.items()),
        Part("coe", (*coterie, *coe), 180),
        Part("tests", (*tests, *SPREAD, *TESTS, "-k", "gpu and not persistent"), 120),
        *(Part(f"{name}-peers", (*coterie, *bench, *peer), COMPILE_S) for name, bench in beside.items()),
        Part("fusion", (*coterie, "bench", "fusion", *on), 60),
        Part("coe-all-peers", (*coterie, *all_that_fit, *peer), COMPILE_S),
        Part("ways", compared, 120),
        *(Part(name, (*coterie, *command), limit_s) for name, (command, limit_s) in packed.items()),
        *(Part(name, command, 120) for name, command in ways.items()),
        *(Part(name, (*coterie, *command), limit_s) for name, (command, limit_s) in then.items()),
        Part("tests-nets", (*tests, TESTS_OF_NETS), 120),
        Part("tests-latent", (*tests, TESTS_OF_LATENT), 120),
        Part("tests-moe", (*tests, TESTS_OF_BRANCHES), 120),
        Part("decode-moe", (*coterie, *branches), 60),
        Part("tests-persistent", (*tests, *TESTS, "-k", "gpu-persistent"), COMPILE_S),
        Part("fusion-persistent", (*coterie, *walked), COMPILE_S),
    )


def run_parts(chosen: Sequence[Part], folder: Path, total_s: float, say: Callable[[str], None]) -> list[Outcome]:
    """Run parts in order within `total_s`; the output and result of each are in the folder before the next starts."""
    deadline, outcomes = monotonic() + total_s, []
    with (folder / SUMMARY).open("a", encoding="utf-8") as summary, _room(0) as shared:
        for part in chosen:
            left_s = deadline - monotonic()
            if left_s < min(MIN_S, part.limit_s):
                outcome = Outcome(part.name, "not begun: no time left", 0.0, False, " ".join(part.command))
            else:
                outcome = _run(part, folder, min(part.limit_s, left_s), Path(shared))
            told = _numbers(folder / f"{part.name}.json") if outcome.result else {}
            outcomes.append(outcome)
            summary.write(json.dumps(asdict(outcome)) + "\n")
            summary.flush()
            say(json.dumps({"part": part.name, "status": outcome.status, "took_s": round(outcome.seconds, 1), **told}))
    return outcomes


def _room(own_bytes: int) -> TemporaryDirectory[str]:
    """A temporary folder; in memory if `own_bytes` is not 0 and there is room."""
    in_memory = own_bytes and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > own_bytes
    where = MEMORY if in_memory else None
    return TemporaryDirectory(prefix="coterie-first-gpu-", dir=where, ignore_cleanup_errors=True)


def _run(part: Part, folder: Path, limit_s: float, shared: Path) -> Outcome:
    text, result, start = folder / f"{part.name}.txt", folder / f"{part.name}.json", monotonic()
    result.unlink(missing_ok=True)  # do not mistake an earlier run's result for this one's
    # Its own TMPDIR, so that experts of many gigabytes are removed even if the part could not do it.
    with _room(part.own_bytes) as room, text.open("wb") as log:
        files = {"TMPDIR": room, kept.FOLDER: "" if part.own_bytes else str(shared)}
        try:
            status = _wait(part.command, log.fileno(), limit_s, {**ENVIRONMENT, **_caches(folder), **files})
        except OSError as error:
            status = f"cannot be started: {error.strerror}"
    kept.clean(shared)
    printed = text.read_text(encoding="utf-8", errors="replace")
    found = next(_results(printed), None)
    if found is not None:
        result.write_text(found + "\n", encoding="utf-8")
    if status != "ok":
        said = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "it printed nothing")
        status = f"{status}; {text.name} ends with: {said}"
    return Outcome(part.name, status, monotonic() - start, found is not None, " ".join(part.command))


def seen_to_run(folder: Path) -> set[str]:
    """The parts that have ended well in this folder, according to its summary."""
    summary = folder / SUMMARY
    seen = set()
    for line in summary.read_text(encoding="utf-8").splitlines() if summary.is_file() else []:
        with suppress(ValueError):  # an incomplete line
            outcome = json.loads(line)
            if outcome["status"] == "ok":
                seen.add(outcome["name"])
    return seen


def _numbers(result: Path) -> dict[str, float]:
    """The numeric values of a bench's result, which are printed in case its file is lost."""
    found = json.loads(result.read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def _caches(folder: Path) -> dict[str, str]:
    """Compiler cache folders, shared between parts, so that nothing is compiled twice."""
    names = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    return {variable: str(folder / "cache" / name) for variable, name in names.items()}


def _wait(command: Sequence[str], log: int, limit_s: float, environment: Mapping[str, str]) -> str:
    """Run a command: how it ended, in words. All its processes are killed, or the words say that this failed."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        code = child.wait(limit_s)
        status = "ok" if code == 0 else f"failed with status {code}"
    except subprocess.TimeoutExpired:
        status = f"stopped after its {limit_s:.0f} s"
    except BaseException:
        _end(child)
        raise
    return status if _end(child) else f"{status}: it could not be ended, and may still hold the GPU"


def _end(child: subprocess.Popen[bytes]) -> bool:
    """Send SIGTERM, then SIGKILL, to the child's process group; False if the child is still there."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, how)
            child.wait(GRACE_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    try:
        child.wait(GRACE_S)  # a process blocked in a driver survives even SIGKILL
    except subprocess.TimeoutExpired:
        return False
    return True


def _results(printed: str) -> Iterator[str]:
    """Lines with a bench's JSON, last first."""
    for line in reversed(printed.splitlines()):
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and "bench" in value:
                yield line


def end_with_part() -> None:
    """Let SIGTERM end the running part too, as Ctrl-C does: it has its own process group, and would keep the GPU."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ENDED))


def gpu_of(coterie: Sequence[str] = COTERIE) -> str:
    """What `coterie info` says about the GPU: a description, or `none for ...` and the reason."""
    try:
        command = [*coterie, "info", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True, timeout=INFO_S)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{NO_GPU}coterie info: {error}"
    return str(json.loads(done.stdout)["gpu"])


def main(arguments: Sequence[str] | None = None, coterie: Sequence[str] = COTERIE) -> int:
    """Run the parts; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_gpu", description="A first session on a GPU.")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="The folder of results.")
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:NUMBER.")
    parser.add_argument("--shape", default="1b", help="What is measured; coe and calibrate too.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="The longest that all of it may take.")
    parser.add_argument("--only", action="append", metavar="PART", help="Run this part; may be repeated.")
    parser.add_argument("--rest", action="store_true", help="Only parts that have not run in this folder before.")
    given = parser.parse_args(arguments)
    every = parts(given.out.resolve(), given.device, given.shape, coterie)
    names = [part.name for part in every]
    for name in given.only or ():
        if name not in names:
            parser.error(f"{name!r} is not a part; use one of {', '.join(names)}")
    end_s = monotonic() + 60 * given.minutes  # finding the GPU takes a minute on a cold disk
    gpu = gpu_of(coterie)
    if gpu.startswith(NO_GPU):
        print(f"no GPU, so nothing was run: {gpu}")
        return 2
    (given.out / "trace").mkdir(parents=True, exist_ok=True)
    done = seen_to_run(given.out) if given.rest else set()
    chosen = [part for part in every if part.name in (given.only or names) and part.name not in done]
    print(f"{gpu}\n{len(chosen)} of {len(every)} parts, results in {given.out}", flush=True)
    outcomes = run_parts(chosen, given.out.resolve(), end_s - monotonic(), lambda line: print(line, flush=True))
    failed = [outcome.name for outcome in outcomes if outcome.status != "ok"]
    print(f"all {len(outcomes)} parts ran" if not failed else f"not all parts ran: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    end_with_part()
    sys.exit(main())
