"""An inbox that nobody reads any more: everybody who waits is told, in order."""

from __future__ import annotations

import queue

from coterie.api.jobs import Job, fail_all


def test_all_who_wait_are_told_also_behind_an_end():
    inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    told: list[tuple[str, Exception]] = []
    ran: list[str] = []

    def job(name: str) -> Job:
        return Job(lambda: ran.append(name), lambda error: told.append((name, error)))

    for one in (job("ada"), None, job("bob"), None, job("cyd")):
        inbox.put(one)
    error = RuntimeError("it broke")
    fail_all(inbox, error)
    assert told == [(name, error) for name in ("ada", "bob", "cyd")]
    assert inbox.empty()
    assert not ran
    fail_all(inbox, error)  # of nobody
