"""An inbox: jobs are done in order, and everybody who waits on one that nobody reads any more is told."""

from __future__ import annotations

from coterie.api.jobs import Inbox, Job


class Asked:
    """Jobs that say what became of them, and how often the thread was woken."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.told: list[tuple[str, Exception]] = []
        self.woken = 0
        self.inbox = Inbox(self.wake)

    def wake(self) -> None:
        self.woken += 1

    def put(self, *names: str) -> None:
        for name in names:
            self.inbox.put(
                Job(lambda name=name: self.ran.append(name), lambda e, name=name: self.told.append((name, e)))
            )


def test_all_who_wait_are_told_also_behind_an_end_and_who_comes_later():
    asked = Asked()
    asked.put("ada")
    asked.inbox.end()
    asked.put("bob")
    asked.inbox.end()
    asked.put("cyd")
    error = RuntimeError("it broke")
    asked.inbox.close(error)
    assert asked.told == [(name, error) for name in ("ada", "bob", "cyd")]
    asked.inbox.close(error)  # of nobody
    asked.put("dan")
    assert asked.told[3:] == [("dan", error)]
    assert asked.inbox.work(sleeps=False)
    assert asked.ran == []


def test_who_puts_while_it_closes_is_told():
    """Between the look at whether it is open and the put."""
    asked, error = Asked(), RuntimeError("it broke")

    def closes() -> None:
        asked.inbox.refuses = error  # as another thread does, which has emptied it just before

    asked.inbox._wake = closes
    asked.put("ada")
    assert (asked.told, asked.ran) == ([("ada", error)], [])


def test_jobs_are_done_in_order_until_the_end():
    asked = Asked()
    asked.put("ada", "bob")
    assert asked.inbox.work(sleeps=True)
    assert asked.inbox.work(sleeps=False)
    asked.put("cyd")
    asked.inbox.end()
    asked.put("dan")
    assert not asked.inbox.work(sleeps=True)
    assert (asked.ran, asked.told, asked.woken) == (["ada", "bob", "cyd"], [], 5)


def test_whoever_sleeps_in_vain_rests_and_sleeps_on():
    asked, rests = Asked(), list[int]()

    def rest() -> None:
        rests.append(len(rests))
        if len(rests) == 3:
            asked.put("ada")

    assert asked.inbox.work(True, lambda: 0.0, rest)
    assert (rests, asked.ran) == ([0, 1, 2], ["ada"])
    assert asked.inbox.work(False, lambda: 0.0, rest)
    assert len(rests) == 3
