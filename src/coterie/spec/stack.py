"""Software stacks: overheads and efficiencies of serving software, which override those in a machine's file.

    library = "nccl"                                      the measured collectives that it uses
    launch_device = { value = ..., unit, source }         one number for all machines
    step_host.a100 = { value = ..., unit, source }        one number per GPU

Knows nothing about what the factors mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from coterie.core.errors import NotFoundError, UsageError, shown
from coterie.core.parsed import parse_toml
from coterie.core.paths import shipped_names, user_path

_FACTORS = {
    "launch_host", "launch_device", "step_host", "step_floor", "prompt_floor", "step_sequence", "kernel_share",
    "exchange_share", "large_step",
}  # fmt: skip
_KEYS = _FACTORS | {"name", "notes", "library", "rule_set"}


def stack_names() -> tuple[str, ...]:
    """Names of the stacks that ship with Coterie, sorted."""
    return shipped_names("coterie.spec", "stacks", ".toml")


def with_stack(machine: Mapping[str, Any], ref: str, where: str) -> dict[str, Any]:
    """A machine file's contents, overridden by a stack's.

    Raises NotFoundError for an unknown stack, UsageError if it has no number for the machine's GPU.
    """
    stack = _read(ref)
    name, gpu = f"stack {ref}", str(machine.get("kernels", ""))
    for key in sorted(set(stack) - _KEYS):
        raise UsageError(f"{name}: {key}", "is an unknown key", f"use {', '.join(sorted(_KEYS))}")
    found = dict(machine)
    for key in _FACTORS & set(stack):
        value = stack[key]
        if not isinstance(value, dict):
            raise UsageError(f"{name}: {key}", f"is {value!r}", "give a table { value, unit, source }")
        if "unit" not in value and "unknown" not in value:
            if gpu not in value:
                fact = f"has no number for {gpu or 'machines without measured kernels'}, which is what {where} has"
                raise UsageError(f"{name}: {key}", fact, f"use it on {', '.join(value)}")
            value = value[gpu]
        found[key] = value
    if "rule_set" in stack:
        found["rule_set"] = stack["rule_set"]
    if "library" in stack and isinstance(found.get("peers"), dict):
        device = str(found["peers"].get("library", "")).partition("/")[0]
        if not device or not isinstance(stack["library"], str):
            raise UsageError(name, f"brings collectives but none were measured on {where}", "leave the stack out")
        found["peers"] = {**found["peers"], "library": f"{device}/{stack['library']}"}
    found["stack"] = str(stack.get("name", ref))
    for holder, notes in ((where, found.get("notes", [])), (name, stack.get("notes", []))):
        if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise UsageError(f"{holder}: notes", f"is {shown(notes)}", "give a list of texts")
    found["notes"] = [*found.get("notes", []), *stack.get("notes", [])]
    return found


def read_text(path: Path, where: str) -> str:
    """Read a text file; `where` names it in errors. Raises UsageError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(where, f"cannot be read: {error}", "give a text file in UTF-8") from error


def _read(ref: str) -> dict[str, Any]:
    if ref.endswith(".toml"):
        path = user_path(ref)
        if not path.is_file():
            raise NotFoundError(ref, "there is no such file", "give the path of a stack's .toml file")
        text = read_text(path, f"stack {ref}")
    elif ref in stack_names():
        text = (files("coterie.spec") / "stacks" / f"{ref}.toml").read_text(encoding="utf-8")
    else:
        raise NotFoundError(ref, "there is no such stack", f"use one of {', '.join(stack_names())}, or a .toml file")
    return parse_toml(text, f"stack {ref}")
