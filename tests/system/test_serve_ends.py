"""`coterie serve` as a process: what ends it, and what it leaves when it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from coterie.core.trace import read_trace

SERVE = [sys.executable, "-c", "from coterie.cli.main import main; main()", "serve", "demo", "--port", "0"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_server_that_is_told_to_end_writes_its_trace(number: int, status: int, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    server = subprocess.Popen([*SERVE, "--trace", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = ""
        while not (found := re.search(r"at (http://\S+)", said)):
            said += server.stdout.readline()
            assert server.poll() is None, said
        body = {"model": "demo", "messages": [{"role": "user", "content": "What is 47 plus 85?"}]}
        with httpx.Client(transport=httpx.HTTPTransport(retries=20)) as client:
            answer = client.post(f"{found[1]}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200
        server.send_signal(number)
        _, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode == status, errors
    assert "Traceback" not in errors
    assert "compute" in read_trace(path).lanes
