"""What is found of the machine that this process runs on, by made-up /proc and /sys.

Knows nothing about modelled machines.
"""

from __future__ import annotations

import dataclasses

import pytest

from coterie.spec.this_machine import allowed_cores, allowed_cpus, allowed_memory, allowed_nodes, this_machine


def test_this_machine_says_what_it_does_not_know():
    spec = this_machine()
    assert [tier.name for tier in spec.tiers] == ["dram", "disk"]
    assert 0 < spec.tier("dram").capacity_bytes < 2**50
    assert spec.units >= 1
    assert spec.link("disk", "dram").bytes_per_s == spec.flops_per_s == 0.0
    assert "not measured" in spec.flops_source
    assert dataclasses.replace(spec, name="x").rule_set == "cache"


@pytest.mark.parametrize(("flags", "found"), [("fpu avx2 avx512f avx512vl", (6.0, 12.0)), ("fpu avx2 fma", (0.0, 0.0))])
def test_what_kernels_compute_beside_a_byte_is_known_of_wide_vectors(tmp_path, flags, found):
    fake(tmp_path, {"proc/cpuinfo": f"processor\t: 0\nflags\t\t: {flags}\n"})
    spec = this_machine(tmp_path)
    assert (spec.flops_per_byte, spec.few_flops_per_byte) == found


def fake(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n"}


def test_memory_without_groups_is_what_is_available(tmp_path):
    assert allowed_memory(fake(tmp_path, MEMINFO)) == (8000000 * 1024, "MemAvailable of /proc/meminfo")


def test_memory_under_cgroup_v2_counts_every_group_above_and_not_the_page_cache(tmp_path):
    group = "sys/fs/cgroup/outer/inner"
    files = {
        "proc/self/cgroup": "0::/outer/inner\n",
        f"{group}/memory.max": "max\n",
        "sys/fs/cgroup/outer/memory.max": "1000000\n",
        "sys/fs/cgroup/outer/memory.current": "700000\n",
        "sys/fs/cgroup/outer/memory.stat": "anon 1\nfile 500000\nshmem 100000\n",
    }
    size, source = allowed_memory(fake(tmp_path, MEMINFO | files))
    assert size == 1000000 - (700000 - 400000)
    assert "v2" in source


NODES = {
    "proc/self/status": "Name:\tx\nMems_allowed:\t02\nMems_allowed_list:\t1,3-4\n",
    "sys/devices/system/node/has_memory": "0-1,3\n",
    "sys/devices/system/node/node0/meminfo": "Node 0 MemFree:      9000000 kB\n",
    "sys/devices/system/node/node1/meminfo": (
        "Node 1 MemTotal:     8000 kB\nNode 1 MemFree:      1000 kB\nNode 1 MemUsed:      7000 kB\n"
        "Node 1 Active(anon):     50 kB\nNode 1 Active(file):     200 kB\nNode 1 Inactive(file):   30 kB\n"
    ),
    "sys/devices/system/node/node3/meminfo": "Node 3 MemFree:      4 kB\n",
}


def test_memory_is_that_of_the_nodes_that_may_be_used(tmp_path):
    """A cpuset may leave out nodes: what is free elsewhere is none for this process. Node 4 has no memory."""
    size, source = allowed_memory(fake(tmp_path / "some", MEMINFO | NODES))
    assert size == 1234 * 1024
    assert source == "free memory of NUMA nodes 1, 3, which cpuset.mems allows"
    every = NODES | {"proc/self/status": "Mems_allowed_list:\t0-4\n"}
    assert allowed_memory(fake(tmp_path / "all", MEMINFO | every))[0] == 8000000 * 1024
    few = {"proc/meminfo": "MemAvailable:    100 kB\n"}
    assert allowed_memory(fake(tmp_path / "little", few | NODES))[0] == 100 * 1024


def test_memory_under_cgroup_v1(tmp_path):
    group = "sys/fs/cgroup/memory/job"
    files = {
        "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/\n",
        f"{group}/memory.limit_in_bytes": "2000000\n",
        f"{group}/memory.usage_in_bytes": "500000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    size, source = allowed_memory(fake(tmp_path, MEMINFO | files))
    assert size == 1500000
    assert "v1" in source


def test_cpus_follow_the_quota(tmp_path):
    v2 = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}
    assert allowed_cpus(fake(tmp_path / "v2", v2)) == (1, "cgroup quota")
    v1 = {
        "proc/self/cgroup": "1:cpu,cpuacct:/\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert allowed_cpus(fake(tmp_path / "v1", v1)) == (1, "cgroup quota")
    free = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}
    assert allowed_cpus(fake(tmp_path / "free", free))[1] == "affinity"


def cpu_files(siblings, **more):
    """A /sys of CPUs: `siblings` is thread_siblings_list of each; `more` a list each for a file's numbers."""
    files = {f"cpu{i}/topology/thread_siblings_list": f"{text}\n" for i, text in enumerate(siblings)}
    for name, numbers in more.items():
        path = {"capacity": "cpu_capacity", "clock": "cpufreq/cpuinfo_max_freq"}[name]
        files |= {f"cpu{i}/{path}": f"{number}\n" for i, number in enumerate(numbers)}
    return {f"sys/devices/system/cpu/{name}": text for name, text in files.items()}


EACH = "one for each CPU"
PAIRS = [f"{i % 8},{i % 8 + 8}" for i in range(16)]  # 8 cores of two hyperthreads
MIXED = ["0-1", "0-1", "2-3", "2-3", *map(str, range(4, 10))]  # two cores of two hyperthreads, six of one
PART_OF_QUOTA = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}


@pytest.mark.parametrize(
    ("files", "cpus", "found", "said"),
    [
        ({}, range(6), 6, EACH),
        (cpu_files(map(str, range(6))), range(6), 6, EACH),
        (cpu_files(PAIRS), range(16), 8, "16 CPUs share 8 cores"),
        (cpu_files(PAIRS), [0, 1, 8], 2, "3 CPUs share 2 cores"),
        (cpu_files(PAIRS), [3, 4], 2, EACH),
        (cpu_files(PAIRS), [8], 1, EACH),
        (cpu_files(PAIRS) | PART_OF_QUOTA, range(16), 3, "cgroup quota"),
        (cpu_files(PAIRS) | PART_OF_QUOTA, [0, 8], 1, "2 CPUs share 1 core"),
        (cpu_files(MIXED, clock=[5200] * 4 + [3900] * 6), range(10), 8, "10 CPUs share 8 cores"),
        (
            cpu_files(MIXED, clock=[5100] * 4 + [3800] * 4 + [2500] * 2),
            range(10),
            6,
            "without 2 less than half as fast",
        ),
        (cpu_files(map(str, range(8)), capacity=[1024] * 2 + [900] * 2 + [300] * 4), range(8), 4, "without 4"),
        (cpu_files(map(str, range(8)), capacity=[1024] * 4 + [300] * 4), range(4, 8), 4, EACH),
        (cpu_files("01", capacity=[1024, 1024], clock=[5000, 1000]), range(2), 2, EACH),
        (cpu_files("0000"), range(4), 4, EACH),  # a list without the CPU itself says nothing of it
        (cpu_files(["", "\n", "1,2", "3"]), range(4), 4, EACH),
        (cpu_files("0123", clock=[5000, 5000]), range(4), 4, EACH),
        (cpu_files("0123", capacity=[1024, 1024], clock=[9, 9, 1, 9]), range(4), 3, f"{EACH}, without 1 "),
    ],
)
def test_threads_are_the_cores_that_may_be_used_and_are_not_slow(tmp_path, files, cpus, found, said):
    count, source = allowed_cores(fake(tmp_path, files), cpus)
    assert count == found
    assert said in source


def test_this_machine_has_a_thread_for_each_core():
    count, _ = allowed_cores()
    assert 1 <= count <= allowed_cpus()[0]
    assert this_machine().units == count


def test_nodes_are_those_of_the_cpus_that_may_be_used(tmp_path):
    lists = {"node0": "0-3,8-11\n", "node1": "4-7,12-15\n", "node2": "\n", "node10": "16\n"}  # node2: memory alone
    root = fake(tmp_path, {f"sys/devices/system/node/{name}/cpulist": text for name, text in lists.items()})
    assert allowed_nodes(root, range(17)) == (0, 1, 10)
    assert allowed_nodes(root, [1, 9]) == (0,)
    assert allowed_nodes(root, [3, 12]) == (0, 1)
    assert allowed_nodes(tmp_path / "no-such", range(17)) == ()
