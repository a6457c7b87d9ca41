"""Machine files: what ships, what is refused and how."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from coterie.core.errors import NotFoundError, UsageError
from coterie.spec.load import load_machine, machine_names, parse_machine

MACHINE = """
name = "small"
rule_set = "cache"
units = 4
flops = { value = 2, unit = "TFLOP/s", source = "datasheet", per_unit = true }
launch_host = { value = 5, unit = "us", source = "a guess", assumed = true }
launch_device = { value = 0, unit = "s", source = "none" }
[[tier]]
name = "hbm"
capacity = { value = 2, unit = "GiB", source = "datasheet" }
bandwidth = { value = 1.5, unit = "TB/s", source = "datasheet" }
[[tier]]
name = "disk"
capacity = { value = 1, unit = "TB", source = "datasheet" }
bandwidth = { unknown = true, source = "not published" }
[[link]]
src = "disk"
dst = "hbm"
bandwidth = { value = 3, unit = "GB/s", source = "measured" }
latency = { value = 80, unit = "us", source = "measured" }
"""


def test_numbers_come_out_in_base_units():
    spec = parse_machine(MACHINE, "small.toml")
    assert spec.flops_per_s == 8e12
    assert spec.launch_host_s == pytest.approx(5e-6)
    assert spec.launch_device_s == 0.0
    assert spec.tier("hbm").capacity_bytes == 2 * 2**30
    assert spec.tier("hbm").bytes_per_s == 1.5e12
    assert spec.tier("disk").bytes_per_s == 0.0
    assert spec.link("disk", "hbm").bytes_per_s == 3e9
    assert spec.link("disk", "hbm").latency_s == pytest.approx(80e-6)
    assert (spec.run_tier, spec.home_tier, spec.units) == ("hbm", "disk", 4)
    assert "not published" in spec.tier("disk").source
    assert spec.notes == ("assumed: launch_host = 5 us (a guess)",)


@pytest.mark.parametrize(
    ("old", "new", "key", "fact"),
    [
        (', source = "datasheet", per_unit = true', ", per_unit = true", "flops.source", "is missing"),
        ('unit = "TB/s", ', "", "tier.hbm.bandwidth.unit", "is missing"),
        ("value = 1.5, ", "", "tier.hbm.bandwidth.value", "is missing"),
        ('source = "a guess"', 'source = " "', "launch_host.source", "is empty"),
        ('unit = "TB/s"', 'unit = "TFLOP/s"', "tier.hbm.bandwidth.unit", "TFLOP/s"),
        ('unit = "TFLOP/s"', 'unit = "GB"', "flops.unit", "GB"),
        ("value = 1.5", "value = -1.5", "tier.hbm.bandwidth.value", "-1.5"),
        ("value = 1.5", "value = 0", "tier.hbm.bandwidth.value", "is 0"),
        ("value = 1.5", 'value = "fast"', "tier.hbm.bandwidth.value", "fast"),
        ("value = 1.5", "value = nan", "tier.hbm.bandwidth.value", "nan"),
        ("assumed = true", "asumed = true", "launch_host.asumed", "unknown key"),
        ("assumed = true", "assumed = 1", "launch_host.assumed", "is 1"),
        ("unknown = true", "unknown = true, value = 3", "tier.disk.bandwidth.value", "unknown key"),
        ('name = "small"', 'nmae = "small"', "nmae", "unknown key"),
        ('name = "small"', "", "name", "is missing"),
        ("units = 4", "units = 0", "units", "is 0"),
        ("units = 4", "units = 2.5", "units", "2.5"),
        ('name = "disk"', 'name = "hbm"', "tier", "names hbm 2 times"),
        ('name = "disk"', 'name = "disc"', "link[0]", "'disk'"),
        ('src = "disk"', 'src = "tape"', "link[0]", "'tape'"),
        ('dst = "hbm"', "", "link[0].dst", "is missing"),
        ('dst = "hbm"', 'dst = "disk"', "link[0]", "from disk to itself"),
        (MACHINE[MACHINE.index("[[link]]") :], "", "link", "no way from disk up to hbm"),
        (MACHINE[MACHINE.index("[[tier]]") :], "tier = []", "tier", "is empty"),
        ('{ value = 2, unit = "GiB"', "{ unknown = true", "tier.hbm.capacity", "is unknown"),
        ('{ value = 2, unit = "GiB"', '{ value = 0.5, unit = "B"', "tier.hbm.capacity", "is less than a byte"),
        ('rule_set = "cache"', "rule_set = 3", "rule_set", "is 3"),
        ('rule_set = "cache"', 'rule_set = "cache"\ngated_launch = "nobody"', "gated_launch", "'nobody'"),
        ('rule_set = "cache"', 'rule_set = "cache"\ngated_launch = ""', "gated_launch", "''"),
        ("[[tier]]", "[[teir]]", "teir", "unknown key"),
        ("value = 1.5", 'value = 1.5, achieved = 1.2, achieved_source = "x"', "tier.hbm.bandwidth.achieved", "1.2"),
        ("value = 1.5", "value = 1.5, achieved = 0.8", "tier.hbm.bandwidth.achieved_source", "is missing"),
        ("value = 1.5", "low = 2, high = 3, value = 1.5", "tier.hbm.bandwidth", "low 2"),
        ("value = 1.5", "low = 1, value = 1.5", "tier.hbm.bandwidth.high", "is missing"),
        ("units = 4", "units = 4\nhost_links = 5", "host_links", "is 5"),
        ("units = 4", "units = 4\n[grid]\ntiles = 3\n[rest]", "rest", "unknown key"),
        ("flops = {", "flops = 3\nother = {", "other", "unknown key"),
        ('name = "small"', "name = ", "", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_key(old, new, key, fact):
    assert old in MACHINE
    with pytest.raises(UsageError) as caught:
        parse_machine(MACHINE.replace(old, new), "small.toml")
    assert caught.value.where == (f"small.toml: {key}" if key else "small.toml")
    assert fact in caught.value.fact
    assert caught.value.remedy


def test_units_with_memory_of_their_own_need_a_way_to_each_other():
    """They were priced as one large unit, as if nothing passed between them."""
    apart = MACHINE.replace('source = "datasheet" }\n[[tier]]', 'source = "datasheet", per_unit = true }\n[[tier]]')
    with pytest.raises(UsageError, match="4 units, each with memory of its own") as caught:
        parse_machine(apart, "small.toml")
    assert caught.value.where == "small.toml: peers"
    assert parse_machine(apart, "small.toml", {"units": "1"}).tier("hbm").bytes_per_s == 1.5e12
    rate = '{ value = 64, unit = "GB/s", source = "PCIe" }'
    peers = f'[peers]\nbandwidth = {rate}\nlatency = {{ value = 9, unit = "us", source = "a guess" }}\n'
    assert parse_machine(apart + peers, "small.toml").tier("hbm").bytes_per_s == 4 * 1.5e12


def test_a_number_that_lacks_is_shown_as_it_is_written():
    for key, unit in (("launch_device", "us"), ("flops", "TFLOP/s")):
        short = "\n".join(line for line in MACHINE.splitlines() if not line.startswith(key))
        with pytest.raises(UsageError, match="is missing") as caught:
            parse_machine(short, "small.toml")
        assert caught.value.remedy == f'add {key} = {{ value = 1, unit = "{unit}", source = "..." }}'


def test_ranges_of_times_are_listed_and_can_be_chosen():
    """They were read after the list was made, so that `program_host=high` was no range."""
    keys = {item.key for item in load_machine("sn40l-node").unpublished}
    assert {"program_host", "program_device", "launch_host"} <= keys
    high, low = (load_machine(f"sn40l-node:program_host={end}").program_host_s for end in ("high", "low"))
    assert high > low > 0


def test_a_machine_of_one_tier_needs_no_link():
    spec = parse_machine(MACHINE[: MACHINE.rindex("[[tier]]")], "small.toml")
    assert spec.run_tier == spec.home_tier == "hbm"
    assert not spec.links


@pytest.mark.parametrize("units", ["²", "x", "-1", "1.5"])
def test_a_setting_that_is_no_whole_number_is_refused(units):
    with pytest.raises(UsageError, match="give a whole number"):
        parse_machine(MACHINE, "small.toml", {"units": units})


def test_a_repeated_link_is_refused():
    text = MACHINE + MACHINE[MACHINE.index("[[link]]") :]
    with pytest.raises(UsageError, match="disk->hbm 2 times"):
        parse_machine(text, "small.toml")


# Of each machine, all units together: TFLOP/s, run tier, its GB and GB/s, GB/s of the link up to it, watts.
GOLDEN = {
    "a100": (312, "hbm", 80, 2039, 32, 400),
    "b200": (2250, "hbm", 180, 7672, 64, 1000),
    "b300": (2250, "hbm", 288.4, 7750, 64, 1100),
    "dgx-a100": (2496, "hbm", 640, 16312, 32, 3200),
    "dgx-b200": (18000, "hbm", 1440, 61376, 512, 8000),
    "dgx-b300": (18000, "hbm", 2307.2, 62000, 512, 8800),
    "dgx-h100": (7912, "hbm", 640, 26800, 64, 5600),
    "dgx-h200": (7912, "hbm", 1128, 38400, 64, 5600),
    "dgx-spark": (125, "dram", 128, 273, 6, 240),
    "epyc-2core": (0.15, "dram", 25.77, 33.4, 3, 0),
    "epyc-9005-2s": (44.2, "dram", 1536, 1228.8, 25, 1000),
    "epyc-9554": (6.35, "dram", 768, 460.8, 25, 360),
    "gb200": (5000, "hbm", 372, 15400, 450, 2400),
    "gb200-nvl72-8": (20000, "hbm", 1488, 61600, 1800, 9600),
    "gb300": (5000, "hbm", 596, 16000, 450, 2800),
    "gb300-nvl72-8": (20000, "hbm", 2384, 64000, 1800, 11200),
    "gh200": (989, "hbm", 96, 4000, 450, 1000),
    "h100": (989, "hbm", 80, 3350, 64, 700),
    "h200": (989, "hbm", 141, 4800, 64, 700),
    "l40s": (362.05, "gddr", 48, 864, 32, 350),
    "mac-studio-m3-ultra": (28.4, "dram", 512, 819, 6, 480),
    "mi300x": (1307.4, "hbm", 192, 5300, 64, 750),
    "mi300x-platform": (10459.2, "hbm", 1536, 42400, 512, 6000),
    "mi355x": (2516.6, "hbm", 288, 8000, 64, 1400),
    "mi355x-platform": (20132.8, "hbm", 2304, 64000, 512, 11200),
    "rtx-4090": (165.2, "gddr", 24, 1008, 32, 450),
    "rtx-5090": (209.5, "gddr", 32, 1792, 64, 575),
    "rtx-pro-6000": (467.8, "gddr", 96, 1792, 64, 600),
    "sn40l-node": (5104, "hbm", 512, 14400, 1600, 0),
    "sn40l-node-hc": (5104, "hbm", 512, 12800, 800, 0),
    "sn40l-rack": (10208, "hbm", 1024, 28800, 3200, 0),
    "sn40l-rack-hc": (10208, "hbm", 1024, 25600, 1600, 0),
    "sn40l-socket": (638, "hbm", 64, 1800, 200, 0),
    "sn40l-socket-hc": (638, "hbm", 64, 1600, 100, 0),
    "strix-halo": (59, "dram", 128, 256, 6, 120),
    "toy": (0.001, "dram", 0.0671, 0.1, 0.01, 0),
    "toy-tiers": (0.004, "hbm", 0.0671, 0.2, 0.04, 0),
}


def test_every_machine_that_ships_has_its_row():
    assert machine_names() == tuple(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_machine_has_the_published_numbers(name):
    tflops, run_tier, capacity_gb, gb_per_s, link_gb_per_s, power_w = GOLDEN[name]
    spec = load_machine(name)
    near, below = spec.tier(spec.run_tier), spec.weight_tiers[1]
    assert spec.run_tier == run_tier
    found = (spec.flops_per_s / 1e12, near.capacity_bytes / 1e9, near.bytes_per_s / 1e9)
    assert found == pytest.approx((tflops, capacity_gb, gb_per_s), rel=2e-3)
    assert spec.link(below, run_tier).bytes_per_s == pytest.approx(link_gb_per_s * 1e9, rel=2e-3)
    assert spec.power_w == power_w


@pytest.mark.parametrize("name", ["dgx-spark", "mac-studio-m3-ultra", "strix-halo", "epyc-9005-2s", "epyc-9554"])
def test_one_memory_has_no_tier_between_the_disk_and_where_experts_run(name):
    spec = load_machine(name)
    assert spec.weight_tiers == ("dram", "disk")
    assert any("no tier between the disk" in note for note in spec.notes)


def test_measured_kernels_can_be_left_out_so_that_machines_are_priced_alike():
    assert load_machine("dgx-h100").kernels == "h100"
    bare = load_machine("dgx-h100:kernels=none")
    assert dataclasses.replace(bare, notes=()) == dataclasses.replace(load_machine("dgx-h100"), kernels="", notes=())
    assert any(note.startswith("carried over") for note in bare.notes)
    with pytest.raises(UsageError, match="is set to a100; set it to none"):
        load_machine("dgx-h100:kernels=a100")


def test_a_price_is_its_users_and_of_no_file():
    assert all(not load_machine(name).price for name in GOLDEN)
    assert load_machine("dgx-h100:host_links=8,price=300000.5").price == 300000.5


@pytest.mark.parametrize("price", ["0", "-3", "much", "nan", "inf"])
def test_a_price_that_is_none_is_refused(price):
    with pytest.raises(UsageError, match="price=400000") as caught:
        load_machine(f"h100:price={price}")
    assert caught.value.where == "h100.toml: price"


@pytest.mark.parametrize("name", machine_names())
def test_a_machine_that_ships_is_whole(name):
    spec = load_machine(name)
    assert spec.name == name
    assert spec.flops_per_s > 0
    assert spec.tier(spec.run_tier).bytes_per_s > 0
    below = [tier.name for tier in spec.tiers if tier.name in spec.weight_tiers]
    for near, far in pairwise(below):
        assert spec.link(far, near).bytes_per_s > 0
        less = (near, far) == ("hbm", "dram") and name in ("gb300", "gb300-nvl72-8")  # a Grace CPU has 480 GB
        assert (spec.tier(far).capacity_bytes > spec.tier(near).capacity_bytes) != less


@pytest.mark.parametrize(
    ("name", "flops_per_s", "near_bytes", "near_bytes_per_s", "src", "switch_s"),
    [
        ("sn40l-node", 5.104e15, 512e9, 14.4e12, "ddr", 14.1e-3),
        ("dgx-a100", 2.496e15, 640e9, 16.312e12, "dram", 437.5e-3),
        ("dgx-h100", 7.912e15, 640e9, 26.8e12, "dram", 218.75e-3),
    ],
)
def test_the_papers_machines(name, flops_per_s, near_bytes, near_bytes_per_s, src, switch_s):
    """A switch moves 14 GB, a Llama 2 7B in bf16: arXiv 2405.07518, Fig. 12(b)."""
    spec = load_machine(name)
    assert spec.run_tier == "hbm"
    assert spec.flops_per_s == pytest.approx(flops_per_s)
    assert spec.tier("hbm").capacity_bytes == near_bytes
    assert spec.tier("hbm").bytes_per_s == pytest.approx(near_bytes_per_s)
    link = spec.link(src, "hbm")
    assert 14e9 / link.achieved_bytes_per_s + link.latency_s == pytest.approx(switch_s, rel=1e-3)


def test_physical_and_achieved_rates_are_apart():
    spec = load_machine("sn40l-node")
    assert spec.tier("hbm").achieved_bytes_per_s == pytest.approx(0.85 * 8 * 1.8e12)
    assert spec.achieved_flops_per_s == pytest.approx(0.9 * 8 * 638e12)
    assert spec.link("ddr", "hbm").bytes_per_s == pytest.approx(8 * 200e9)
    assert spec.link("ddr", "hbm").achieved_bytes_per_s == pytest.approx(0.993e12, rel=1e-3)
    assert "VI-C" in spec.tier("hbm").share_source
    assert spec.unit_bytes_per_s("hbm") == pytest.approx(1.8e12)
    assert load_machine("dgx-h100").unit_bytes_per_s("dram") == load_machine("dgx-h100").tier("dram").bytes_per_s


def test_a_grid_adds_up_to_the_published_peak():
    spec = load_machine("sn40l-socket")
    assert spec.grid is not None
    assert spec.grid.pcus * spec.grid.pcu_flops_per_s == pytest.approx(638e12, rel=2e-3)
    assert spec.grid.sram_bytes == spec.tier("sram").capacity_bytes == 520 * 2**20


def test_a_launch_grows_with_what_it_configures():
    spec = load_machine("sn40l-node")
    assert spec.launch_s("device") == spec.launch_device_s < spec.launch_s("device", 0.5) < spec.launch_s("device", 1.0)
    assert spec.launch_s("host", 1.0) == pytest.approx(spec.launch_host_s + spec.program_host_s)


def test_settings_choose_host_links_units_and_ends_of_ranges():
    one, eight = load_machine("dgx-h100"), load_machine("dgx-h100:host_links=8")
    assert eight.link("dram", "hbm").bytes_per_s == 8 * one.link("dram", "hbm").bytes_per_s
    assert eight.host_links == 8
    two = load_machine("dgx-h100:units=2")
    assert two.flops_per_s == pytest.approx(one.flops_per_s / 4)
    assert two.tier("dram").capacity_bytes == one.tier("dram").capacity_bytes
    low, high = (load_machine(f"sn40l-node:peers.bandwidth={end}").peers for end in ("low", "high"))
    assert (low.bytes_per_s, high.bytes_per_s) == (64e9, 450e9)
    item = next(item for item in load_machine("sn40l-node").unpublished if item.key == "peers.bandwidth")
    assert (item.low, item.value, item.high) == (64e9, 200e9, 450e9)


@pytest.mark.parametrize(
    ("ref", "where", "fact"),
    [
        ("dgx-h100:host_links=9", "dgx-h100.toml: host_links", "is 9"),
        ("dgx-h100:host_links=0", "dgx-h100.toml: host_links", "is 0"),
        ("dgx-h100:host_links=-1", "dgx-h100.toml: host_links", "'-1'"),
        ("dgx-h100:host_links=two", "dgx-h100.toml: host_links", "'two'"),
        ("sn40l-node:host_links=2", "sn40l-node.toml: host_links", "no such number"),
        ("dgx-h100:units=16", "dgx-h100.toml: units", "is 16"),
        ("dgx-h100:flops=high", "dgx-h100.toml: flops", "no range"),
        ("sn40l-node:launch_device=middle", "sn40l-node.toml: launch_device", "middle"),
        ("dgx-h100:host_links", "dgx-h100:host_links", "not a setting"),
        ("dgx-h100:units=2,units=4", "dgx-h100:units=2,units=4", "not a setting"),
    ],
)
def test_a_wrong_setting_is_refused(ref, where, fact):
    with pytest.raises(UsageError) as caught:
        load_machine(ref)
    assert caught.value.where == where
    assert fact in caught.value.fact
    assert caught.value.remedy


def test_an_unknown_machine_names_those_that_exist(tmp_path):
    with pytest.raises(NotFoundError, match="sn40l-node"):
        load_machine("sn50")
    with pytest.raises(NotFoundError, match="no such file"):
        load_machine(str(tmp_path / "none.toml"))


def test_a_folder_is_no_machine_and_says_where_to_look(tmp_path):
    with pytest.raises(NotFoundError, match="is a folder, not a machine; coterie check"):
        load_machine(str(tmp_path))


@pytest.mark.parametrize("ref", ["{}", "dgx-h100:stack={}"])
def test_a_file_that_is_no_text_is_one_sentence(tmp_path, ref):
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="give a text file in UTF-8"):
        load_machine(ref.format(tmp_path / "bytes.toml"))


def test_a_machine_is_read_from_a_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MACHINE)
    assert load_machine(str(path)) == parse_machine(MACHINE, "mine.toml")
