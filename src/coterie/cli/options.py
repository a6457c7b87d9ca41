"""Options shared by several commands, and the conversion of errors into one sentence and an exit status.

Knows nothing about what the commands do.
"""

from __future__ import annotations

import errno
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.measure import Measurement

from coterie.core.errors import CoterieError, DeviceError, UsageError
from coterie.core.paths import user_path
from coterie.core.trace import Trace, write_trace
from coterie.core.units import parse_bytes, parse_seconds

P = ParamSpec("P")
T = TypeVar("T")

# No emoji codes: the :100: in a name such as lognormal:100:0.8 must stay text.
out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

_MAX_TABLE_WIDTH = 1000  # characters in a line of a table
# Errors of the system about a path that the user gave, which may come even from a check for existence.
_PATH_ERRNOS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)


def size(text: str) -> int:
    """Parse a size option. Raises typer.BadParameter."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def seconds(text: str) -> float:
    """Parse a time option. Raises typer.BadParameter."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


CompositionArg = Annotated[
    str,
    typer.Argument(
        metavar="COMPOSITION", help="demo, a composition.toml, a folder of checkpoints, or a Hugging Face id"
    ),
]
LowPriorityOpt = Annotated[
    float,
    typer.Option(
        "--behind",
        metavar="SHARE",
        help="Share of the requests, drawn at random, that have priority 1; the others have 0.",
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
NearOpt = Annotated[
    int | None, typer.Option("--near", parser=size, metavar="SIZE", help="Memory for experts, e.g. 64MiB.")
]
ResponseStoreOpt = Annotated[
    int | None,
    typer.Option(parser=size, metavar="SIZE", help="Memory for stored responses (64MiB); 0 stores none."),
]
PoolOpt = Annotated[
    int | None, typer.Option("--pool", parser=size, metavar="SIZE", help="Host memory for a GPU's experts, e.g. 64GiB.")
]
KvOpt = Annotated[
    int | None, typer.Option("--kv", parser=size, metavar="SIZE", help="Memory for the KV cache, e.g. 256MiB.")
]
ReuseOpt = Annotated[
    bool,
    typer.Option(
        "--reuse/--no-reuse", help="Prefix caching: prompts that begin like earlier ones share their KV cache."
    ),
]
SpeculateOpt = Annotated[
    int | None,
    typer.Option(
        "--speculate",
        min=0,
        metavar="COUNT",
        help="Speculative decoding by prompt lookup: draft at most this many tokens, and verify them in one step: no "
        "token changes. 0 turns it off; the default suits the machine.",
    ),
]
DraftOpt = Annotated[
    str,
    typer.Option(
        "--draft",
        metavar="EXPERT",
        help="Speculative decoding: an expert that drafts for those with its vocabulary; no token changes.",
    ),
]
DeviceOpt = Annotated[
    str,
    typer.Option(
        help="cpu, cuda (a GPU), modelled:MACHINE (real tokens, modelled time) or synthetic:MACHINE (nothing "
        "is computed)."
    ),
]
DevicesOpt = Annotated[
    list[str],
    typer.Option(
        help="cpu, cuda (a GPU; cuda:1 is the second), modelled:MACHINE (real tokens, modelled time) or "
        "synthetic:MACHINE (nothing is computed). Repeatable: several devices of one kind share the requests."
    ),
]
TraceOpt = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a timeline for chrome://tracing, Perfetto or coterie trace."),
]
ActivationsOpt = Annotated[
    str,
    typer.Option(
        help="What a CPU rounds activations to. float32 (or int16): to 12 to 16 bits for quantised weights, else not "
        "at all. int8: to 8 bits for quantised weights, less exact and faster with int4. bf16: as float32, but to "
        "bfloat16 for bfloat16 weights. auto: bf16 for dense experts on a CPU with AVX512-BF16, else float32."
    ),
]
KvTypeOpt = Annotated[
    str,
    typer.Option(
        help="How a CPU stores keys and values: auto (as the weights are, mostly 16 bits) or int8, less exact, "
        "with nearly twice the tokens in --kv."
    ),
]
LeaveOutOpt = Annotated[
    bool,
    typer.Option(
        "--leave-out",
        help="Leave out experts of a composition file that cannot be served, as in a folder; by default the first "
        "such expert is an error.",
    ),
]
SamplingOpt = Annotated[
    str,
    typer.Option(
        help="Sampling settings that a request leaves out: checkpoint (from the composition file or each "
        "model's generation_config.json) or greedy."
    ),
]
MaxBatchOpt = Annotated[
    int | None,
    typer.Option(min=1, max=256, help="Maximum sequences of one expert in one step; 64 on a CPU, 32 elsewhere."),
]
ThreadsOpt = Annotated[
    int | None, typer.Option(min=1, help="Compute threads; by default one for each core (coterie info says how many).")
]


def write_text(path: Path, text: str, option: str) -> None:
    """Write a file that an option names. Raises UsageError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(option, f"{path} cannot be written: {error.strerror}", "choose another file") from error


def save_trace(path: Path, trace: Trace) -> None:
    """Write a trace and report it on stderr, with the number of dropped events. Raises UsageError."""
    write_trace(path, trace)
    dropped = trace.notes.get("dropped", 0)
    lost = f"; the {dropped} oldest events were dropped" if dropped else ""
    err.print(f"trace: {len(trace.slices)} pieces of work in {path}{lost}", markup=False)


def report_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Decorator: report a CoterieError in one sentence on stderr, with exit status 2 for user errors, 1 for a device's.

    A leading ~ in Path arguments is expanded, since a shell does not do that in --out=~/file.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            for name, value in kwargs.items():
                if isinstance(value, Path):
                    kwargs[name] = user_path(value)
            return command(*args, **kwargs)
        except CoterieError as error:
            err.print(f"coterie: {error}", style="red", markup=False)
            raise typer.Exit(1 if isinstance(error, DeviceError) else 2) from error
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno not in _PATH_ERRNOS or error.filename is None:
                raise
            sentence = f"coterie: [{error.filename}] {error.strerror}; check the path, and what you may read and write"
            err.print(sentence, style="red", markup=False)
            raise typer.Exit(2) from error

    return wrapped


def picked(of: object, *names: str) -> dict[str, Any]:
    """Some attributes of an object, for JSON."""
    return {name: getattr(of, name) for name in names}


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; non-ASCII characters are escaped unless stdout's encoding is a UTF."""
    escaped = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    sys.stdout.write(json.dumps(value, ensure_ascii=escaped, indent=2) + "\n")
    sys.stdout.flush()


def print_full_width(shown: RenderableType) -> None:
    """Print tables at their full width, so that names are not wrapped and can be searched for."""
    wide = Measurement.get(out, out.options.update(max_width=_MAX_TABLE_WIDTH), shown).maximum
    Console(file=out.file, width=max(out.width, wide), highlight=False, soft_wrap=True, emoji=False).print(shown)


def short_base(base: str) -> str:
    """A short name for an adapter's base. A base that is not an expert is named by its folder's absolute path.

    In the Hugging Face cache, models--TEAM--NAME/snapshots/COMMIT is shortened to TEAM/NAME.
    """
    path = Path(base)
    if not path.is_absolute():
        return base
    model = path.parent.parent.name
    if path.parent.name == "snapshots" and model.startswith("models--"):
        return model.removeprefix("models--").replace("--", "/", 1)
    return path.name
