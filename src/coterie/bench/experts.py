"""Random experts as ordinary checkpoint folders, and random LoRA adapters of one base, as PEFT saves them; temporary.

If generated files are kept (kept.py), weights are links to those; configs that give the same tensors share them.

Knows nothing about what is measured with them.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count as numbers
from pathlib import Path
from typing import Any, TypeAlias

from coterie.api.assemble import unmet
from coterie.bench.kept import kept_name, kept_path, provide
from coterie.bench.random_file import weight_bytes, write_tensors
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
from coterie.models.packing import KEY, Packing
from coterie.models.quantize import quantize_folder
from coterie.models.registry import weight_shapes
from coterie.spec.this_machine import allowed_cpus

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@contextmanager
def random_experts(config: Mapping[str, Any], count: int) -> Iterator[tuple[Model, ...]]:
    """`count` experts of one shape with random bf16 weights, removed on exit.

    Raises CapacityError if the temporary folder is too small, and what ModelConfig.from_hf raises.
    """
    shapes = _shapes_of(config)
    root, missing = Path(tempfile.gettempdir()), count - _kept_count(shapes, count)
    need, cpus = missing * weight_bytes(shapes), int(allowed_cpus()[0])
    _check_room(root, missing, need)
    with tempfile.TemporaryDirectory(prefix="coterie-bench-", dir=root) as folder:
        threads = max(1, cpus // count)  # per expert; several are written at once
        try:
            with ThreadPoolExecutor(cpus) as pool:
                made = [
                    pool.submit(_random_expert, Path(folder) / f"random-{n}", config, shapes, n, threads)
                    for n in range(count)
                ]
                try:
                    for one in made:
                        one.result()
                except BaseException:  # do not start the others
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(root, missing, need) from error
            raise
        yield tuple(open_model(Path(folder) / f"random-{seed}") for seed in range(count))


def _random_expert(folder: Path, config: Mapping[str, Any], shapes: Shapes, seed: int, threads: int) -> None:
    """Write config.json and provide the weights, which may come from kept files."""
    folder.mkdir()
    _write_config(folder, config)
    write = partial(write_tensors, shapes=shapes, seed=seed, threads=threads)
    provide(folder / SINGLE, _made_of(shapes, seed), write)


def _made_of(shapes: Shapes, seed: int) -> dict[str, Any]:
    return {"random": {name: list(shape) for name, shape in shapes.items()}, "seed": seed}


def kept_experts(config: Mapping[str, Any]) -> int:
    """How many random experts of a config are kept already, and so need not be written."""
    shapes = _shapes_of(config)
    return next(seed for seed in numbers() if not _is_kept(shapes, seed))


def _shapes_of(config: Mapping[str, Any]) -> Shapes:
    return weight_shapes(ModelConfig.from_hf(config, "--shape"))


def _kept_count(shapes: Shapes, experts: int) -> int:
    """How many of the first `experts` are kept already."""
    return sum(_is_kept(shapes, seed) for seed in range(experts))


def _is_kept(shapes: Shapes, seed: int) -> bool:
    file = kept_path(_made_of(shapes, seed))
    return file is not None and file.exists()


@contextmanager
def experts_in_turn(
    shapes: Sequence[Mapping[str, Any]], count: int, say: Callable[[str], None], copies: int = 0
) -> Iterator[list[Model]]:
    """`count` random experts, cycling through the shapes; `say` is told how many have to be written.

    Raises CapacityError if the temporary folder has no room for them and for `copies` further copies of all.
    """
    counts = [len(range(first, count, len(shapes))) for first in range(len(shapes))]
    kinds = [(shape, number) for shape, number in zip(shapes, counts, strict=True) if number]
    written = [(shape, number - _kept_count(_shapes_of(shape), number)) for shape, number in kinds]
    need = check_room(
        [(shape, new + copies * number) for (shape, number), (_, new) in zip(kinds, written, strict=True)]
    )
    say(f"writing {sum(new for _, new in written)} random experts, {format_bytes(need)}")
    with ExitStack() as stack:
        made = [stack.enter_context(random_experts(shape, number)) for shape, number in kinds]
        yield [made[number % len(made)][number // len(made)] for number in range(count)]


def check_room(kinds: Sequence[tuple[Mapping[str, Any], int]]) -> int:
    """The bytes of these (config, count) experts. Raises CapacityError if the temporary folder is too small."""
    need = sum(count * weight_bytes(_shapes_of(config)) for config, count in kinds)
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
    """The type in which these weights are stored."""
    packing = WEIGHTS[weights]
    return (packing.layers if packing else None) or DType.BF16


def check_activations(weights: str, activations: str) -> None:
    """Raise UsageError for an unknown type of weights, and for activations that cannot be combined with it."""
    _check_stored(weights)
    if activation_type(stored(weights), activations) is None:
        how, others = ("packed", "bf16") if activations == BF16 else ("not packed", "int8, int6, int4 or int4z")
        raise unmet(f"{weights} weights are {how}", activations, f"add --weights {others}")


def activation_type(dtype: DType, activations: str) -> str | None:
    """The type of activations that a CPU multiplies with weights of a type, under the option `activations`.

    None if these weights cannot be combined with such activations.
    """
    if dtype.is_packed:
        return {BF16: None, FLOAT32: INT16}.get(activations, activations)
    if activations in (FLOAT32, INT16):
        return FLOAT32
    return BF16 if activations == BF16 and dtype is DType.BF16 else None


@contextmanager
def packed_expert(model: Model, weights: str) -> Iterator[Model]:
    """The model with its weights as `weights` says: itself for bf16, else a quantised copy in a temporary folder.

    Raises UsageError for an unknown type, CapacityError without room.
    """
    _check_stored(weights)
    packing = WEIGHTS[weights]
    if packing is None:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="coterie-bench-") as root:
        folder = Path(root) / weights
        plain = kept_name(model.checkpoint.path / SINGLE)
        if plain is None:
            quantize_folder(model.checkpoint.path, folder, packing)
        else:
            _link_packed(model, plain, packing, folder)
        yield open_model(folder)


def _link_packed(model: Model, plain: str, packing: Packing, folder: Path) -> None:
    """Provide the packed weights of a model as a kept file too; `plain` is the name of the kept unpacked ones."""

    def pack(file: Path) -> None:
        made = file.with_name(f"{file.name}.folder")
        try:
            (quantize_folder(model.checkpoint.path, made, packing).folder / SINGLE).rename(file)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    folder.mkdir()
    provide(folder / SINGLE, {"packed": packing.to_config(), "plain": plain}, pack)
    _write_config(folder, dict(model.checkpoint.config) | {KEY: packing.to_config()})


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


def write_expert(folder: Path, config: Mapping[str, Any], shapes: Shapes, seed: int) -> None:
    """Write config.json and one safetensors file that is not shared, and sync the latter."""
    folder.mkdir()
    _write_config(folder, config)
    write_tensors(folder / SINGLE, shapes, seed)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    stored = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (folder / CONFIG).write_text(json.dumps(stored | {"torch_dtype": "bfloat16"}), encoding="utf-8")


ADAPTED = "_proj.weight"  # suffix of the weights of all linear layers except the head


@contextmanager
def random_adapters(base: Model, count: int, rank: int) -> Iterator[list[Model]]:
    """`count` adapters of this rank on all linear layers of a base, removed on exit."""
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
