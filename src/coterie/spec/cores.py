"""Machines without a GPU: how their rates depend on threads, memory channels and sockets.

    arithmetic     proportional to the number of threads, one per core
    bandwidth      proportional to the channels in use; at most threads * bandwidth of one core
    sockets        slabs are interleaved across sockets page by page (docs/architecture.md, More cores), so each of n
                   sockets reads (n - 1) / n of its data from the others: the total is at most n^2 / (n - 1) times the
                   bandwidth into one socket
    barrier        at the end of a region, proportional to the number of threads

Derived from specifications: Coterie has not run on a machine with more than two cores. Knows nothing about programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coterie.spec import quantity as q
from coterie.spec.machine import Cores, Tier

SETTINGS = ("threads", "channels")
_NUMBERS = {"count": q.COUNT, "channels": q.COUNT, "bandwidth": q.RATE, "barrier": q.TIME}
_INTO = "into_socket"


def with_cores(
    reader: q.Reader, raw: Mapping[str, Any], settings: Mapping[str, str], flops: q.Quantity, tiers: tuple[Tier, ...]
) -> tuple[q.Quantity, tuple[Tier, ...], Cores | None]:
    """Apply the settings `threads` (in total) and `channels` (per socket) to a machine's arithmetic and tiers.

    Unchanged, and without Cores, if the file has no [cores]. Raises UsageError for settings that do not apply.
    """
    if "cores" not in raw:
        for key in SETTINGS:
            if key in settings:
                fact = f"is set to {settings[key]} but the machine's file counts no cores"
                raise reader.wrong(key, fact, "leave it out, or add a table [cores]")
        return flops, tiers, None
    table = reader.typed(raw["cores"], "cores", dict, "a table [cores]")
    reader.keys(table, "cores", {*_NUMBERS, _INTO}, set(_NUMBERS))
    found = {key: reader.quantity(table[key], f"cores.{key}", units).value for key, units in _NUMBERS.items()}
    cores, channels = reader.units * int(found["count"]), int(found["channels"])
    threads = _setting(reader, settings, "threads", cores)
    used = _setting(reader, settings, "channels", channels)
    near = tiers[0]
    near = replace(near, bytes_per_s=near.bytes_per_s * used / channels)
    if _INTO in table and reader.units > 1:
        into = reader.quantity(table[_INTO], f"cores.{_INTO}", q.RATE).value
        most = into * reader.units**2 / (reader.units - 1)
        if most < near.achieved_bytes_per_s:
            source = f"{near.share_source}; bounded by what passes between sockets"
            near = replace(near, share=most / near.bytes_per_s, share_source=source)
    flops = replace(flops, value=flops.value * threads / cores)
    return flops, (near, *tiers[1:]), Cores(threads, found["bandwidth"], found["barrier"])


def _setting(reader: q.Reader, settings: Mapping[str, str], key: str, most: int) -> int:
    text = settings.get(key, str(most))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise reader.wrong(key, f"is {text!r}", f"give a whole number from 1 to {most}")
    return int(text)
