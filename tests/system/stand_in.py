"""A server with OpenAI's API as a command line starts one: fixed answers, slips where it is told to.

    python -m tests.system.stand_in PORT MODEL,MODEL [--refuse N] [--child BYTES] [--die]

Knows nothing about who asks. `--refuse N`: each N-th request is answered with 503. `--child`: a process of its own that
holds so much memory, beside one that has worked and ended. `--die`: it ends at once, with a word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

HOLD = "import sys, time; held = bytearray(b'x') * {size}; print('held', flush=True); time.sleep(600)"
WORK = "import time\nwhile time.process_time() < 0.3: pass"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    models: tuple[str, ...] = ()
    refuse = 0
    numbers = count(1)

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": name} for name in self.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.refuse and next(self.numbers) % self.refuse == 0:
            self._send(503, {"error": {"message": "no room for it"}})
            return
        words = len((body["prompt"] if "prompt" in body else body["messages"][0]["content"]).split())
        usage = {"prompt_tokens": words, "completion_tokens": body["max_tokens"]}
        events = [{"choices": [{"index": 0, "text": "a", "delta": {"content": "a"}, "finish_reason": None}]}]
        events += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}, {"choices": [], "usage": usage}]
        data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
        self._answer(200, data, "text/event-stream")

    def _send(self, status: int, body: object) -> None:
        self._answer(status, json.dumps(body).encode(), "application/json")

    def _answer(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("models")
    parser.add_argument("--refuse", type=int, default=0)
    parser.add_argument("--child", type=int, default=0)
    parser.add_argument("--die", action="store_true")
    given = parser.parse_args()
    if given.die:
        sys.exit("I have no models")
    _Handler.models, _Handler.refuse = tuple(given.models.split(",")), given.refuse
    server = ThreadingHTTPServer(("127.0.0.1", given.port), _Handler)
    if given.child:
        line = [sys.executable, "-c", HOLD.format(size=given.child)]
        child = subprocess.Popen(line, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        subprocess.run([sys.executable, "-c", WORK], check=True)
    server.serve_forever()


if __name__ == "__main__":
    _main()
