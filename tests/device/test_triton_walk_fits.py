"""How many programs of a walk fit on a GPU, and what is tried where too many were launched."""

from __future__ import annotations

import pytest
from tests.device.interpreted import WIDE

from coterie.kernels.triton import persistent


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "warps", "fit"),
    [
        (128, 0, 4, 4),
        (129, 0, 4, 3),
        (255, 22_784, 4, 2),
        (255, 0, 8, 1),
        (64, 100 * 1024, 4, 2),
        (32, 227 * 1024, 4, 1),
    ],
)
def test_programs_that_fit_are_limited_by_registers_or_shared_memory(registers, shared_bytes, warps, fit):
    """On an H100: 65,536 registers and 228 KiB of shared memory, 227 KiB of it for one program."""
    assert persistent.programs_that_fit(registers, shared_bytes, warps, 65_536, 227 * 1024) == fit


class Crowd:
    """A GPU with room for so many programs at once; it stands for the kernel."""

    def __init__(self, room, refusal="Triton Error [CUDA]: too many blocks in cooperative launch"):
        self.room, self.refusal, self.asked = room, refusal, []

    def __getitem__(self, grid):
        def launch():
            self.asked.append(grid[0])
            if grid[0] > self.room:
                raise RuntimeError(self.refusal)

        return launch

    def run(self, *args, **options):
        """Nothing is compiled."""


@pytest.mark.parametrize(("room", "asked"), [(400, [395]), (300, [395, 263]), (131, [395, 263, 131])])
def test_a_first_launch_of_too_many_programs_is_tried_with_fewer_and_that_many_stay(monkeypatch, room, asked):
    """Fewer later on would take the arrivals of earlier launches for their own, and wait for ever.

    One place stays free for kernels of other streams, as the one that copies the word which ends a run.
    """
    crowd = Crowd(room)
    monkeypatch.setattr(persistent, "walk", crowd)
    monkeypatch.setattr(persistent, "_programs", lambda compiled, tiles: 3)
    walk = persistent.Walk(132, WIDE, (), {})
    walk()
    assert crowd.asked == asked
    walk()
    crowd.room = 130
    with pytest.raises(RuntimeError, match="too many blocks"):
        walk()
    assert crowd.asked == [*asked, asked[-1], asked[-1]]


@pytest.mark.parametrize(("crowd", "asked"), [(Crowd(130), [395, 263, 131]), (Crowd(0, "out of memory"), [395])])
def test_a_launch_that_fewer_programs_do_not_mend_is_refused(monkeypatch, crowd, asked):
    monkeypatch.setattr(persistent, "walk", crowd)
    monkeypatch.setattr(persistent, "_programs", lambda compiled, tiles: 3)
    with pytest.raises(RuntimeError, match=crowd.refusal.rpartition(": ")[2]):
        persistent.Walk(132, WIDE, (), {})()
    assert crowd.asked == asked
