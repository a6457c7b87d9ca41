"""What a step costs on a modelled machine, region by region; and that the device charges just that.

Knows nothing about lanes or events.
"""

from __future__ import annotations

import pytest
from tests.device.made_up import NEAR, PREFILL, desk_on, machine, took

from coterie.devices.modelled_price import roofline_s, step_time
from coterie.spec.load import load_machine


@pytest.mark.parametrize("orchestration", ["device", "host"])
@pytest.mark.parametrize("name", ["toy", "sn40l-node", "dgx-h100", "made-up"])
def test_a_step_alone_takes_what_the_device_charges(layout, name, orchestration):
    spec = load_machine(name) if name != "made-up" else machine(2e7, 1e7, host_s=3e-3, device_s=1e-3)
    desk = desk_on(spec, layout, orchestration=orchestration)
    priced = step_time(spec, desk.exe.program, PREFILL.sizes, orchestration=orchestration)
    assert took(desk, desk.run(PREFILL)) == pytest.approx(priced.seconds, rel=NEAR)
    assert [row.region for row in priced.rows] == [region.name for region in desk.exe.program.regions]
    assert priced.seconds >= roofline_s(spec, desk.exe.program, PREFILL.sizes)


def test_a_row_says_what_bounds_it(layout):
    spec = machine(2e7, 1e7, host_s=3e-3, device_s=1e-6)
    program = desk_on(spec, layout).exe.program
    rows = step_time(spec, program, PREFILL.sizes).rows
    assert {row.bound for row in rows} <= {"launch", "compute", "hbm"}
    assert {"compute", "hbm"} <= {row.bound for row in rows}
    for row in rows:
        assert row.seconds == pytest.approx(row.launch_s + max(row.compute_s, row.memory_s["hbm"]))
        assert row.provenance == "analytic"
    first, later = rows[0].launch_s, rows[1].launch_s
    assert first == pytest.approx(later + 3e-3), "software starts a run, the device the rest"
