"""Everything that a first session on a GPU should run, what is worth most first, each part with a limit of its own.

    kernels    what the benches launch, compiled by all cores: no part behind it waits for a compiler
    aims       stored values beside the CPU's; decode of a 1B and a 7B, prefill, switch with a trace; the GPU as a
               machine file, and what a model of it says about these; some experts
    correct    the driver and every promise of a device, before what else is measured
    beside     transformers beside the benches; fusion; as many experts as the host holds, beside transformers
    measured   ways to run a step beside each other; packed weights
    others     gated delta nets, latent attention and layers with branches
    last       runs in one launch, tested and measured: programs that wait for each other may hang a GPU

A part that fails or takes too long does not stop the later ones, and what was done stays whenever all of it is ended.
Each prints a line of JSON: how it ended, and the numbers that it found. In the folder: NAME.txt is all that a part
printed, NAME.json the result of a bench, machine.toml the calibrated machine, summary.jsonl a line for each part that
any session ran there, cache/ what compilers keep for the parts and sessions that follow. Parts of a session share the
weights of experts (coterie.bench.kept), which are written once and removed at its end.

    python -m benchmarks.first_gpu --out gpu-results        exit 0: all parts ran; 1: some did not; 2: there is no GPU
    python -m benchmarks.first_gpu --out gpu-results --rest           those that no session in the folder has seen run

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
COTERIE = (sys.executable, "-m", "coterie")  # a script need not be there: the package may only be on the path
NO_GPU, SUMMARY = "none for ", "summary.jsonl"
# Limits, not estimates: on an H100 with 16 cores a bench took 20 to 25 s, most of it setting up, and all of the tests
# that are not about runs in one launch 23 s in 7 processes. `coe`, `calibrate` and packed weights compile most: more
# than 34, 80 and 42 to 80 s there, kernel by kernel. Since they are compiled at once no GPU has run them.
MINUTES, INFO_S = 13.0, 180.0  # on a machine that has just started PyTorch is read from a cold disk first
COMPILE_S = 240.0  # of what may compile long: whole models, or a run in one launch, 10 to 40 s a bucket on two cores
# An expert of 7B: 13.5 GB to write, and to read again, in memory or at the rate of a disk that nobody has measured; the
# rest of that part is as in a small one's, 25 s.
LARGE_S, LARGE_BYTES = 120.0, 14 * 2**30
MEMORY = Path("/dev/shm")  # files in memory, where a machine has any
MIN_S = 5.0  # a part that has less than this left is not begun
ENDED = 128 + signal.SIGTERM  # the exit status of what was told to end
GRACE_S = 3.0  # from the request to end to the end of asking
STUCK_S = 60  # a test that takes longer shows what each of its threads does: compiles, or waits for the GPU
STUCK = ("-o", f"faulthandler_timeout={STUCK_S}")
# What tests of the device wait for is compilers: on that H100 79 took 23 s in 7 processes, and now there are 145.
SPREAD = ("-n", "8") if find_spec("xdist") else ()
# Kernels are compiled, never interpreted, whatever the shell says; the second lets tests find the GPU, and tables are
# as wide as the third says.
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
    """A command and the longest that it may take.

    `own_bytes`: of files that no other part has a use for, and that need not be on a disk, whose rate is not measured.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    own_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended: `ok`, or a few words; `result` says whether it left one."""

    name: str
    status: str
    seconds: float
    result: bool
    command: str


def parts(folder: Path, device: str, shape: str, coterie: Sequence[str] = COTERIE) -> tuple[Part, ...]:
    """All of them, in order."""
    on, peer = ("--device", device, "--shape", shape), ("--peer", "transformers")
    trace, machine = folder / "trace" / "switch.json", folder / "machine.toml"
    decode = ("bench", "decode", *on, "--context", "512")
    prefill = ("bench", "prefill", *on, "--prompt", "2048")
    switch = ("bench", "switch", *on, "--prompt", "512", "--experts", "2")
    served = ("bench", "coe", *on, "--mix", "zipf", "--in-flight", "8", "--requests")
    coe = (*served, "60", "--experts", "8")
    # Theirs are asked again to choose how they take turns, and each of their tokens is launched op by op.
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
    """Run them in order within `total_s`; what each printed and gave is in the folder, whatever happens to the next."""
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
    """A folder of its own: in memory, where that is said to suffice and there is room."""
    in_memory = own_bytes and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > own_bytes
    where = MEMORY if in_memory else None
    return TemporaryDirectory(prefix="coterie-first-gpu-", dir=where, ignore_cleanup_errors=True)


def _run(part: Part, folder: Path, limit_s: float, shared: Path) -> Outcome:
    text, result, start = folder / f"{part.name}.txt", folder / f"{part.name}.json", monotonic()
    result.unlink(missing_ok=True)  # one of an earlier session would be taken for this one's
    # A folder for what it writes meanwhile: experts of many gigabytes are gone even where it could not remove them.
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
    """The parts that a session in this folder has seen run to their end, by what it wrote there."""
    summary = folder / SUMMARY
    seen = set()
    for line in summary.read_text(encoding="utf-8").splitlines() if summary.is_file() else []:
        with suppress(ValueError):  # one that was not written to its end says nothing
            outcome = json.loads(line)
            if outcome["status"] == "ok":
                seen.add(outcome["name"])
    return seen


def _numbers(result: Path) -> dict[str, float]:
    """The numbers of a bench's result, by their names: what is left of it where its file is lost."""
    found = json.loads(result.read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def _caches(folder: Path) -> dict[str, str]:
    """Where compilers keep what they made: not in a part's own folder, or the next would compile all of it again."""
    names = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    return {variable: str(folder / "cache" / name) for variable, name in names.items()}


def _wait(command: Sequence[str], log: int, limit_s: float, environment: Mapping[str, str]) -> str:
    """Its end in words. All processes that it started are gone afterwards, or the words say that they are not."""
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
    """Ask the group that the child leads to end, then end it; False where the child is still there."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, how)
            child.wait(GRACE_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    try:
        child.wait(GRACE_S)  # the system keeps who waits in a driver, whatever signal was sent
    except subprocess.TimeoutExpired:
        return False
    return True


def _results(printed: str) -> Iterator[str]:
    """Lines that are a bench's JSON, the last first."""
    for line in reversed(printed.splitlines()):
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and "bench" in value:
                yield line


def end_with_part() -> None:
    """Let SIGTERM end the part under way too, as Ctrl-C does: it leads a group of its own, and would keep the GPU."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ENDED))


def gpu_of(coterie: Sequence[str] = COTERIE) -> str:
    """What `coterie info` says about the GPU: its line, or `none for ...` and why."""
    try:
        command = [*coterie, "info", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True, timeout=INFO_S)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{NO_GPU}coterie info: {error}"
    return str(json.loads(done.stdout)["gpu"])


def main(arguments: Sequence[str] | None = None, coterie: Sequence[str] = COTERIE) -> int:
    """The exit status."""
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
    end_s = monotonic() + 60 * given.minutes  # to ask what GPU there is takes a minute on a cold disk
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
