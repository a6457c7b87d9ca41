"""The first session on a GPU, without one: what it says then, and that no part can take the later ones with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from benchmarks import first_gpu
from benchmarks.first_gpu import Part, main, parts, run_parts
from tests.system.tiny import CONFIG

ROOT = Path(__file__).resolve().parents[2]
LAZY = (sys.executable, "-m", "tests.system.lazy_coterie")
TESTS = ("tests", "tests-nets", "tests-latent", "tests-moe", "tests-persistent")
WAYS = ("ways", "ways-int4", "ways-batch")
LARGE = ("decode-moe", "decode-7b")  # of a fixed shape, and too much for a GPU that is none


def code(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def said(text: str) -> tuple[str, ...]:
    """Stands in for `coterie info --json`, which names the GPU."""
    return code(f"print('''{json.dumps({'gpu': text})}''')")


def test_without_a_gpu_it_is_one_sentence_and_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out")], said("none for --device cuda: PyTorch is not installed")) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "no GPU, so nothing was run: none for --device cuda: PyTorch is not installed"
    assert not (tmp_path / "out").exists()
    assert main(["--out", str(tmp_path / "out")], code("raise SystemExit(3)")) == 2
    assert main(["--out", str(tmp_path / "out")], ("/no/such/coterie",)) == 2
    assert "no GPU, so nothing was run: none for coterie info" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--only", "everything"], said("a GPU"))


def test_the_script_ends_with_a_status_on_this_machine(tmp_path: Path) -> None:
    """Where a GPU is, one part that needs no time: the sentence is only for where there is none."""
    command = (sys.executable, "-m", "benchmarks.first_gpu", "--out", str(tmp_path), "--only", "trace")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert ("no GPU, so nothing was run: " in done.stdout) == (done.returncode == 2)
    assert "Traceback" not in done.stderr


GRANDCHILD = """
trap "" TERM
sleep 600 &
echo left > "$TMPDIR/left behind"
echo "$TMPDIR" $!
wait
"""  # of a shell, which says so at once: the part has little time


def test_a_part_that_fails_or_hangs_does_not_stop_the_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_gpu, "GRACE_S", 0.2)
    result = json.dumps({"bench": "decode", "mbu": 0.5, "seconds": 7})
    (tmp_path / "fails.json").write_text("of an earlier session")
    heard: list[str] = []
    with_caches = "import os; print(os.environ['TORCHINDUCTOR_CACHE_DIR'], os.environ['TRITON_CACHE_DIR'])"
    chosen = (
        Part("gives", code(f"import sys; print('a table'); print('{result}'); print('{{no', file=sys.stderr)"), 20),
        Part("fails", code("raise SystemExit('coterie: the GPU no longer answers')"), 20),
        Part("hangs", ("sh", "-c", GRANDCHILD), 1.5),
        Part("is missing", ("/no/such/program",), 20),
        Part(
            "comes last", code("import os; print(os.environ['TRITON_INTERPRET'], os.environ['COTERIE_TEST_GPU'])"), 20
        ),
        Part("keeps", code(with_caches), 20),
    )
    outcomes = run_parts(chosen, tmp_path, 60, heard.append)
    assert [outcome.status.split(";")[0] for outcome in outcomes] == [
        "ok", "failed with status 1", "stopped after its 2 s", "cannot be started: No such file or directory",
        "ok", "ok",
    ]  # fmt: skip
    assert outcomes[1].status.endswith("fails.txt ends with: coterie: the GPU no longer answers")
    assert "a table" in (tmp_path / "gives.txt").read_text()
    assert json.loads((tmp_path / "gives.json").read_text()) == json.loads(result)
    assert [outcome.result for outcome in outcomes] == [True, False, False, False, False, False]
    assert not (tmp_path / "fails.json").exists()
    assert (tmp_path / "comes last.txt").read_text().split() == ["0", "1"]
    folder, pid = (tmp_path / "hangs.txt").read_text().split()
    assert not Path(folder).exists()
    assert not alive(int(pid))
    lines = [json.loads(line) for line in (tmp_path / "summary.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [part.name for part in chosen]
    assert [json.loads(line)["part"] for line in heard] == [part.name for part in chosen]
    took_s = round(lines[0]["seconds"], 1)
    assert json.loads(heard[0]) == {"part": "gives", "status": "ok", "took_s": took_s, "mbu": 0.5, "seconds": 7}
    caches = (tmp_path / "keeps.txt").read_text().split()
    assert caches == [str(tmp_path / "cache" / name) for name in ("inductor", "triton")]  # later parts find them


def alive(pid: int) -> bool:
    """It may take a moment to go, and stay as a zombie where nobody collects orphans."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.05)
    return True


def test_a_bench_needs_nothing_of_a_server() -> None:
    """A machine that is lent for its GPU may have PyTorch and no HTTP."""
    command = "import sys, coterie.cli.bench; print({'starlette', 'uvicorn', 'llguidance'} & set(sys.modules))"
    done = subprocess.run(code(command), capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


HANGS = """
import sys
from pathlib import Path
from benchmarks.first_gpu import Part, end_with_part, run_parts
end_with_part()
run_parts([Part("hangs", ("sh", "-c", sys.argv[2]), 600)], Path(sys.argv[1]), 600, print)
"""


def test_what_ends_a_session_ends_the_part_under_way(tmp_path: Path) -> None:
    """A part leads a group of its own, which a signal to the session's does not reach."""
    session = subprocess.Popen((sys.executable, "-c", HANGS, str(tmp_path), GRANDCHILD), cwd=ROOT)
    said = tmp_path / "hangs.txt"
    while not (said.is_file() and said.read_text().endswith("\n")):
        assert session.poll() is None
        time.sleep(0.05)
    session.terminate()
    assert session.wait(60) == first_gpu.ENDED
    folder, pid = said.read_text().split()
    assert not alive(int(pid))
    assert not Path(folder).exists()


def test_a_second_session_in_a_folder_adds_to_what_is_said_there(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_parts((Part(name, code("print(1)"), 20),), tmp_path, 60, lambda line: None)
    lines = (tmp_path / "summary.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["one", "two"]


def test_the_rest_is_what_no_session_in_the_folder_has_seen_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    three = (Part("one", code("print(1)"), 20), Part("two", code("raise SystemExit(1)"), 20))
    three += (Part("three", code("print(3)"), 20),)
    monkeypatch.setattr(first_gpu, "parts", lambda *_: three)
    words = ["--out", str(tmp_path), "--rest"]
    assert main([*words, "--only", "one", "--only", "two"], said("a GPU")) == 1
    with (tmp_path / "summary.jsonl").open("a") as summary:
        summary.write('{"name": "three", "status": "o')  # a disk was full by then
    capsys.readouterr()
    assert main(words, said("a GPU")) == 1
    ran = [json.loads(line)["part"] for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert ran == ["two", "three"]


def test_the_minutes_are_those_of_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has just started, most of a minute may pass before it is known what GPU there is."""
    asked: list[float] = []
    times = iter([100.0, 142.0])
    monkeypatch.setattr(first_gpu, "monotonic", lambda: next(times))
    monkeypatch.setattr(first_gpu, "run_parts", lambda chosen, folder, total_s, say: asked.append(total_s) or [])
    assert main(["--out", str(tmp_path), "--minutes", "2"], said("a GPU")) == 0
    assert asked == [78.0]


SHARES = """
import os
from pathlib import Path
kept, own = os.environ["COTERIE_BENCH_KEEP"], os.environ["TMPDIR"]
if kept:
    print(kept, own, *sorted(file.name[-8:] for file in Path(kept).iterdir()))
    Path(kept, os.environ["NAME"].rjust(64, "0")).touch()
    Path(kept, "a" * 64 + ".begun").touch()
    Path(kept, "half written").mkdir()
else:
    print("none", own)
"""


def test_parts_share_what_one_has_made_whole_until_the_session_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    monkeypatch.setattr(first_gpu, "MEMORY", memory)
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    chosen = [
        Part(name, ("env", f"NAME={n}", *code(SHARES)), 20, own_bytes)
        for n, (name, own_bytes) in enumerate((("one", 0), ("own", 1), ("two", 0), ("too large", 2**60)), 10)
    ]
    run_parts(chosen, tmp_path, 60, lambda line: None)
    one, own, two, large = ((tmp_path / f"{part.name}.txt").read_text().split() for part in chosen)
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert two[2:] == ["00000010"]  # nothing that was begun
    assert (own[0], Path(own[1]).parent) == ("none", memory)
    assert (large[0], Path(large[1]).parent) == ("none", disk)
    assert [*memory.iterdir(), *disk.iterdir()] == []


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # it is left behind on purpose
def test_what_cannot_be_ended_is_left_behind_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that waits in a driver: no signal reaches it."""
    led: list[int] = []
    monkeypatch.setattr(first_gpu, "GRACE_S", 0.1)
    monkeypatch.setattr(first_gpu.os, "killpg", lambda group, how: led.append(group))
    chosen = (Part("stays", code("import time; time.sleep(600)"), 0.5), Part("follows", code("print(1)"), 20))
    outcomes = run_parts(chosen, tmp_path, 60, lambda line: None)
    monkeypatch.undo()
    os.killpg(led[0], signal.SIGKILL)
    assert outcomes[0].status.startswith("stopped after its 0 s: it could not be ended, and may still hold the GPU")
    assert outcomes[1].status == "ok"


def test_what_has_no_time_left_is_not_begun(tmp_path: Path) -> None:
    chosen = (Part("long", code("import time; time.sleep(600)"), 100), Part("late", code("print(1)"), 100))
    outcomes = run_parts(chosen, tmp_path, 5.3, lambda line: None)
    assert outcomes[0].status.startswith("stopped after its 5 s")
    assert outcomes[1].status == "not begun: no time left"
    assert not (tmp_path / "late.txt").exists()


def test_what_is_worth_most_comes_first_and_every_part_has_a_name_of_its_own(tmp_path: Path) -> None:
    every = parts(tmp_path, "cuda:1", "135m")
    names = [part.name for part in every]
    assert names[:2] == ["kernels", "diff"]  # nothing waits for a compiler, and what is measured is right
    assert len(set(names)) == len(names)
    order = ["decode", "decode-7b", "prefill", "switch", "trace", "calibrate", "validate", "coe", "tests"]
    order += ["decode-peers", "coe-peers", "switch-peers", "prefill-peers", "fusion", "coe-all-peers"]
    order += [
        "ways",
        "decode-int8",
        "decode-int4",
        "decode-int6",
        "ways-batch",
        "ways-int4",
        "prefill-int8",
        "prefill-int4",
    ]
    assert names[2 : 2 + len(order)] == order
    assert all("cuda:1" in part.command for part in every if part.name not in (*TESTS, "trace", "validate"))
    assert names[-2:] == ["tests-persistent", "fusion-persistent"]  # who may hang comes last, tests first
    walks = [part.name for part in every if "fused/persistent" in part.command or "gpu-persistent" in part.command]
    assert walks == names[-2:]
    assert sum(part.limit_s for part in every[: names.index("validate") + 1]) <= 60 * first_gpu.MINUTES
    late = ["tests-nets", "tests-latent", "tests-moe", "decode-moe"]  # what no GPU has run may fault, but does not hang
    assert names[-6:-2] == late
    packed = [part for part in every if part.name.endswith(first_gpu.DECODED) and "ways" not in part.name]
    assert len(packed) == 5
    assert all(part.command[-2:] == ("--weights", part.name[-4:]) for part in packed)
    assert all(0 < part.limit_s <= 240 for part in every)


@pytest.mark.long
def test_a_whole_session_on_a_gpu_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command but the tests' own, in processes of their own; peers too, compiled for this processor: minutes."""
    config, out = tmp_path / "config.json", tmp_path / "out"
    config.write_text(json.dumps(CONFIG))
    every = [part.name for part in parts(out, "cuda", str(config)) if part.name not in (*TESTS, *LARGE)]
    every = [name for name in every if name not in ("kernels", *WAYS)]  # by Triton's own kernels
    only = [word for name in every for word in ("--only", name)]
    status = main(["--out", str(out), "--shape", str(config), "--minutes", "30", *only], LAZY)
    shown = capsys.readouterr().out
    assert status == 0, shown
    for name in (
        "decode",
        "prefill",
        "switch",
        "fusion",
        "fusion-persistent",
        "coe",
        *(f"{name}-{weights}" for name in ("decode", "prefill") for weights in ("int8", "int4")),
        "decode-int6",
        "coe-peers",
        "coe-all-peers",
        "decode-peers",
        "prefill-peers",
        "switch-peers",
    ):
        assert json.loads((out / f"{name}.json").read_text())["workload"]["gpu"] == "lazy (no CUDA)"
    assert "this GPU: decode" in (out / "validate.txt").read_text()
    assert "dram->hbm" in (out / "trace.txt").read_text()
    assert set(json.loads((out / "decode-peers.json").read_text())["peers"]["transformers"]["ways"]) == {
        "transformers", "transformers compiled",
    }  # fmt: skip
