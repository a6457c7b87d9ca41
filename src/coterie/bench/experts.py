"""Random experts as ordinary checkpoint folders in a temporary place: written in pieces, gone afterwards.

And random LoRA adapters of one base, as PEFT saves them.

Knows nothing about what is measured with them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from math import floor, log2, prod
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.api.assemble import unmet
from coterie.checkpoint.folder import ADAPTER_CONFIG, CONFIG, SINGLE
from coterie.core.dtypes import DType
from coterie.core.errors import CapacityError, UsageError
from coterie.core.shapes import trailing
from coterie.core.units import format_bytes
from coterie.graph.low_rank import linear_weights
from coterie.graph.ops import BF16, INT16
from coterie.models.config import ModelConfig
from coterie.models.fine_tunes.adapted import open_adapted
from coterie.models.fine_tunes.adapter import ADAPTER_WEIGHTS
from coterie.models.model import FLOAT32, Model, open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder
from coterie.models.registry import weight_shapes
from coterie.spec.this_machine import allowed_cpus

Bits: TypeAlias = npt.NDArray[np.uint16]

PIECE_ELEMENTS = 1 << 22  # what is in memory at once while a file is written
BF16_BYTES = 2
_BIAS, _SIGN_AND_MANTISSA, _MANTISSA = 127, 0x807F, 0x7F


@contextmanager
def random_experts(config: Mapping[str, Any], count: int) -> Iterator[tuple[Model, ...]]:
    """`count` experts of one shape with random bf16 weights, removed at the end, however it comes.

    Raises CapacityError when the temporary folder has no room, and what ModelConfig.from_hf raises.
    """
    shapes = weight_shapes(ModelConfig.from_hf(config, "--shape"))
    need = count * BF16_BYTES * sum(prod(shape) for shape in shapes.values())
    root = Path(tempfile.gettempdir())
    _check_room(root, count, need)
    with tempfile.TemporaryDirectory(prefix="coterie-bench-", dir=root) as folder:
        try:
            with ThreadPoolExecutor(int(allowed_cpus()[0])) as pool:  # numbers are drawn without the interpreter's lock
                made = [
                    pool.submit(write_expert, Path(folder) / f"random-{n}", config, shapes, n) for n in range(count)
                ]
            for one in made:
                one.result()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(root, count, need) from error
            raise
        yield tuple(open_model(Path(folder) / f"random-{seed}") for seed in range(count))


@contextmanager
def experts_in_turn(
    shapes: Sequence[Mapping[str, Any]], count: int, say: Callable[[str], None], copies: int = 0
) -> Iterator[list[Model]]:
    """`count` random experts, of every shape in turn; `say` hears how many bytes are written.

    Raises CapacityError when the temporary folder has no room for them and for so many copies of all.
    """
    counts = [len(range(first, count, len(shapes))) for first in range(len(shapes))]
    kinds = [(shape, number) for shape, number in zip(shapes, counts, strict=True) if number]
    need = check_room([(shape, number * (1 + copies)) for shape, number in kinds])
    say(f"writing {count} random experts, {format_bytes(need)}")
    with ExitStack() as stack:
        made = [stack.enter_context(random_experts(shape, number)) for shape, number in kinds]
        yield [made[number % len(made)][number // len(made)] for number in range(count)]


def check_room(kinds: Sequence[tuple[Mapping[str, Any], int]]) -> int:
    """The bytes of so many experts of each config. Raises CapacityError when the temporary folder has no room."""
    sizes = [weight_shapes(ModelConfig.from_hf(config, "--shape")).values() for config, _ in kinds]
    need = sum(
        count * BF16_BYTES * sum(prod(shape) for shape in shapes)
        for shapes, (_, count) in zip(sizes, kinds, strict=True)
    )
    _check_room(Path(tempfile.gettempdir()), sum(count for _, count in kinds), need)
    return need


WEIGHTS: Mapping[str, Packing | None] = {
    "bf16": None,
    "int8": Packing(DType.Q8, DType.Q8),
    "int6": Packing(DType.Q6, DType.Q8),
    "int4": Packing(DType.Q4, DType.Q8),
    "int4z": Packing(DType.Q4Z, DType.Q8),
}


def stored(weights: str) -> DType:
    """The type in which such weights lie in memory."""
    packing = WEIGHTS[weights]
    return (packing.layers if packing else None) or DType.BF16


def check_activations(weights: str, activations: str) -> None:
    """Raise UsageError for an unknown way to store weights, and for activations that they do not meet."""
    _check_stored(weights)
    if activation_type(stored(weights), activations) is None:
        how, others = ("packed", "bf16") if activations == BF16 else ("not packed", "int8, int6, int4 or int4z")
        raise unmet(f"{weights} weights are {how}", activations, f"add --weights {others}")


def activation_type(dtype: DType, activations: str) -> str | None:
    """What weights of a type meet on a CPU with such an option: float32 without one, unless they are packed.

    None where these weights do not meet such activations.
    """
    if dtype.is_packed:
        return {BF16: None, FLOAT32: INT16}.get(activations, activations)
    if activations in (FLOAT32, INT16):
        return FLOAT32
    return BF16 if activations == BF16 and dtype is DType.BF16 else None


@contextmanager
def packed_expert(model: Model, weights: str) -> Iterator[Model]:
    """The model with its weights stored as `weights` says, packed beside it where that is not as it is.

    Raises UsageError for an unknown word, CapacityError without room.
    """
    _check_stored(weights)
    packing = WEIGHTS[weights]
    if packing is None:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="coterie-bench-") as folder:
        yield open_model(quantize_folder(model.checkpoint.path, Path(folder) / weights, packing).folder)


def _check_stored(weights: str) -> None:
    if weights not in WEIGHTS:
        raise UsageError("--weights", f"{weights!r} is not a way to store weights", f"use one of {', '.join(WEIGHTS)}")


def _check_room(root: Path, count: int, need_bytes: int) -> None:
    if need_bytes > shutil.disk_usage(root).free:
        raise _no_room(root, count, need_bytes)


def _no_room(root: Path, count: int, need_bytes: int) -> CapacityError:
    levers = ("set TMPDIR to a folder with more room", "choose a smaller --shape")
    what = f"{count} random expert{'s' if count > 1 else ''}"
    return CapacityError(f"temporary folder {root}", what, need_bytes, shutil.disk_usage(root).free, levers)


def write_expert(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """Write config.json and one safetensors file, and see them onto the disk."""
    folder.mkdir()
    stored = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (folder / CONFIG).write_text(json.dumps(stored | {"torch_dtype": "bfloat16"}), encoding="utf-8")
    write_tensors(folder / SINGLE, shapes, seed)


def write_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """Write one safetensors file of random bf16 numbers, and see it onto the disk."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(_header(shapes))
        for name, shape in shapes.items():
            _write_tensor(file, rng, name, shape)
        file.flush()
        os.fsync(file.fileno())  # pages that wait to be written cannot be dropped from the page cache


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    entries, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + prod(shape) * BF16_BYTES
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> None:
    count, is_norm = prod(shape), len(shape) == 1 and "norm" in name
    for start in range(0, count, PIECE_ELEMENTS):
        size = min(PIECE_ELEMENTS, count - start)
        bits = rng.integers(0, 1 << 16, size, dtype=np.uint16)
        made = _near_one(bits) if is_norm else _scaled(bits, shape[-1])
        file.write(made.astype("<u2", copy=False).data)


def _near_one(bits: Bits) -> Bits:
    """Random bits as bf16 from 1 to 2, in place."""
    bits &= _MANTISSA
    bits |= _BIAS << 7
    return bits


def _scaled(bits: Bits, fan_in: int) -> Bits:
    """Random bits as bf16 of either sign, about fan_in ** -0.5 large: sign and mantissa stay, the exponent is set."""
    bits &= _SIGN_AND_MANTISSA
    bits |= _BIAS + floor(log2(fan_in**-0.5)) << 7
    return bits


ADAPTED = "_proj.weight"  # what the weights of linear layers end in, but for the head


@contextmanager
def random_adapters(base: Model, count: int, rank: int) -> Iterator[list[Model]]:
    """`count` adapters of this rank of all linear layers of a base, removed at the end."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in linear_weights(base.graph):
        if name.endswith(ADAPTED):
            rows, columns = (trailing((1, dim)) for dim in base.graph.values[name].shape)
            module = f"base_model.model.{name.removesuffix('.weight')}"
            shapes |= {f"{module}.lora_A.weight": (rank, columns), f"{module}.lora_B.weight": (rows, rank)}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": str(base.path)}
    config |= {"target_modules": sorted({name.split(".")[-3] for name in shapes})}
    with tempfile.TemporaryDirectory(prefix="coterie-bench-") as root:
        found = []
        for seed in range(count):
            folder = Path(root) / f"adapter-{seed}"
            folder.mkdir()
            (folder / ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
            write_tensors(folder / ADAPTER_WEIGHTS, shapes, seed)
            found.append(open_adapted(base, folder))
        yield found
