"""Writes an expert's folder atomically: weights in one file, other files copied.

    header | embed | layers.0 ... | norm | head      one file in execution order, so that a switch reads it sequentially

Knows nothing about how weights are converted (quantize.py, merge.py).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from coterie.checkpoint.folder import CONFIG, INDEX
from coterie.checkpoint.sentence import module_folders
from coterie.core.dtypes import DType
from coterie.core.errors import CapacityError, UsageError
from coterie.core.paths import user_path

PARTIAL = ".partial"  # suffix of a folder that is being written
HEADER_ALIGN_BYTES = 64  # a cache line
_LEFT_OUT = (CONFIG, INDEX)
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


PIECE_WEIGHTS = 1 << 22  # how much of a converted tensor is in memory at once


def row_pieces(num_rows: int, num_columns: int, piece_weights: int = PIECE_WEIGHTS) -> Iterator[slice]:
    """The rows of a matrix in pieces of at most `piece_weights` weights (but at least one row)."""
    step = max(1, piece_weights // num_columns)
    yield from (slice(first, min(first + step, num_rows)) for first in range(0, num_rows, step))


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file to be written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


def free_path(target: str | Path) -> Path:
    """The path of a folder to be written. Raises UsageError if it exists."""
    out = user_path(target)
    if out.exists() or out.is_symlink():
        raise UsageError(str(out), "exists already", "name a new folder, or remove it")
    return out


@contextmanager
def new_folder(out: Path, what: str, size_bytes: int) -> Iterator[Path]:
    """A temporary folder next to `out`, which is renamed to `out` at the end, and removed on any failure.

    Parent folders that had to be created are removed as well, if empty. `what` and `size_bytes` are for messages.
    Raises UsageError, or CapacityError if the disk is full.
    """
    begun = out.with_name(out.name + PARTIAL)
    made = [above for above in out.parents if not above.exists()]  # nearest first
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        begun.mkdir()
    except OSError as error:
        if begun.exists():
            raise UsageError(str(begun), "exists already", "remove what an earlier run left behind") from None
        _remove(begun, made)
        raise _disk_error(error, out, what, size_bytes) from error
    try:
        yield begun
        begun.rename(out)
    except OSError as error:
        _remove(begun, made)
        raise _disk_error(error, out, what, size_bytes) from error
    except BaseException:
        _remove(begun, made)
        raise


def _remove(begun: Path, made: Sequence[Path]) -> None:
    shutil.rmtree(begun, ignore_errors=True)
    for above in made:
        with suppress(OSError):  # not empty: another process uses it
            above.rmdir()


def copy_other_files(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template, generation settings, licence: every file that is neither weights nor hidden.

    The modules of a sentence-transformers model (pooling, dense layers) are copied too. Raises CheckpointError.
    """
    for file in sorted(source.iterdir()):
        left_out = file.name in _LEFT_OUT or file.suffix in _WEIGHT_FILES or file.name.startswith(".")
        if file.is_file() and not left_out and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
    for module in module_folders(source):
        if module.is_dir():
            shutil.copytree(module, target / module.name)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(
    path: Path, entries: Sequence[Entry], metadata: Mapping[str, str], write: Callable[[BinaryIO, Entry], None]
) -> None:
    """Write and fsync a safetensors file: its header, then what `write` appends for each entry in turn."""
    with path.open("xb") as file:
        file.write(_header(entries, metadata))
        for entry in entries:
            write(file, entry)
        file.flush()
        os.fsync(file.fileno())


def _header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    found: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for entry in entries:
        end = offset + entry.dtype.tensor_bytes(entry.shape)
        found[entry.name] = {
            "dtype": entry.dtype.value,
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % HEADER_ALIGN_BYTES)
    return len(text).to_bytes(8, "little") + text


def _disk_error(error: OSError, out: Path, what: str, size_bytes: int) -> CapacityError | UsageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(above for above in out.absolute().parents if above.exists())).free
        return CapacityError(str(out), what, size_bytes, free, ("free some room",))
    return UsageError(str(out), f"cannot be written: {error.strerror}", "name a folder that you may write to")
