"""What a single-model bench measures: a random expert of a given shape, or the user's own checkpoint and its GGUF file.

Knows nothing about how it is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.api.assemble import rounded_for, unmet
from coterie.bench.experts import activation_type, check_activations, packed_expert, random_experts, stored
from coterie.bench.peers.best import peers_named
from coterie.bench.peers.llama_cpp import LlamaFile
from coterie.bench.peers.openvino import OpenVinoFile
from coterie.bench.peers.peer import Peer
from coterie.bench.shapes import shape_config, with_context
from coterie.checkpoint.folder import SINGLE
from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.paths import user_path
from coterie.core.shapes import Sizes
from coterie.devices.cuda.gpu import Gpu, gpu_number
from coterie.graph.stored import value_bytes
from coterie.models.model import AUTO, FLOAT32, Model, open_model
from coterie.models.packing import NAMES

OWN = "own"  # the weights of a user's own checkpoint, as stored
FILE_PEERS: Mapping[str, Callable[[Path], Peer]] = {"llama.cpp": LlamaFile, "openvino": OpenVinoFile}


@dataclass(frozen=True, slots=True)
class Own:
    """A user's own expert folder, and the GGUF file that other engines open for comparison, if any."""

    checkpoint: Path
    gguf: Path | None = None
    peer_names: tuple[str, ...] = ("llama.cpp",)

    @property
    def workload(self) -> dict[str, Any]:
        """The entries for a report: names, without paths."""
        named = {"checkpoint": self.checkpoint.resolve().name}
        return named if self.gguf is None else named | {"gguf": self.gguf.name}

    def peers(self) -> tuple[Peer, ...]:
        """The engines that run the GGUF file. Raises UsageError if a package is missing."""
        return () if self.gguf is None else tuple(FILE_PEERS[name](self.gguf) for name in self.peer_names)

    def experts(self, count: int) -> tuple[Model, ...]:
        """The checkpoint under `count` names, to switch between. Raises UsageError if it consists of several files."""
        if not (self.checkpoint / SINGLE).is_file():
            fact = f"{self.checkpoint} has no {SINGLE}, and a switch is measured beside plain reads of one file"
            raise UsageError("--checkpoint", fact, f"use a checkpoint whose weights are all in {SINGLE}")
        return tuple(open_model(self.checkpoint, f"own-{number}") for number in range(count))


@dataclass(frozen=True, slots=True)
class Target:
    """What a bench is asked to measure: a random expert, or the user's `own`; and the peers to compare with."""

    shape: str
    weights: str = "bf16"
    activations: str = AUTO
    peers: tuple[str, ...] = ()
    own: Own | None = None

    def engines(self) -> tuple[Peer, ...]:
        """The peers to compare with. Raises UsageError for an unknown name or a missing extra."""
        return peers_named(self.peers) if self.own is None else self.own.peers()


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured. `model` is run by us, `plain` is converted by peers.

    `weights` is a key of PRECISIONS in peers/open_peers.py. `stored`: the type of most of the model's weight bytes;
    `activation_type`: the type of the activations multiplied with those.
    """

    model: Model
    plain: Model
    weights: str
    stored: DType
    activation_type: str
    workload: dict[str, Any]


def measured_gpu(device: str) -> Gpu | None:
    """The GPU to measure, None for the CPU. Raises UsageError for any other device."""
    number = gpu_number(device)
    if number is None and device != "cpu":
        raise UsageError("--device", f"{device!r} is not measured here", "use cpu or cuda")
    return None if number is None else Gpu(number)


def own_of(checkpoint: str | None, gguf: str | None, peers: Sequence[str], others: dict[str, bool]) -> Own | None:
    """The user's own checkpoint; None to measure a random expert. `others`: options of random experts -> whether given.

    Raises UsageError for options that contradict each other, and for a file that does not exist.
    """
    if checkpoint is None:
        if gguf is not None:
            raise UsageError("--gguf", "there is no --checkpoint beside it", "give the folder that coterie import made")
        return None
    for name, given in others.items():
        if given:
            raise UsageError(name, "is of random experts, and --checkpoint is one of your own", "leave one of them out")
    if peers and (gguf is None or not set(peers) <= set(FILE_PEERS)):
        fact = f"a checkpoint of one's own is measured beside {' and '.join(FILE_PEERS)} on a GGUF file alone"
        raise UsageError("--peer", fact, "name the file with --gguf, and no other engine")
    file = None if gguf is None else user_path(gguf, "--gguf")
    if file is not None and not file.is_file():
        raise UsageError("--gguf", f"{file} is no file", "check the path")
    folder = user_path(checkpoint, "--checkpoint")
    return Own(folder, file, tuple(dict.fromkeys(peers))) if peers else Own(folder, file)


@contextmanager
def subject(target: Target, room: int) -> Iterator[Subject]:
    """The model, with a context of `room` tokens.

    Raises UsageError, CapacityError, and what opening a checkpoint raises.
    """
    activations, weights = target.activations, target.weights
    if target.own is not None:
        yield _own(target.own, activations, room)
        return
    check_activations(weights, FLOAT32 if activations == AUTO else activations)  # refuse before writing anything
    config = with_context(shape_config(target.shape), room)
    with random_experts(config, 1) as (plain,), packed_expert(plain, weights) as packed:
        workload = {"shape": target.shape, "weights": f"random {weights}"}
        model, activation = _as_run(packed, activations, stored(weights))
        yield Subject(model, plain, weights, stored(weights), activation or FLOAT32, workload)


def _own(own: Own, activations: str, room: int) -> Subject:
    model = open_model(own.checkpoint)
    if room > model.max_context:
        fact = f"{model.name} has room for {model.max_context} tokens, where {room} are measured"
        raise UsageError("--checkpoint", fact, "measure fewer tokens")
    most = _most_bytes(model)
    run, activation = _as_run(model, activations, most)
    if activation is None:
        raise unmet(f"most weights of {model.name} are {_name(most)}", activations)
    workload = own.workload | {"weights": f"own, most {_name(most)}"}
    return Subject(run, model, OWN, most, activation, workload)


def _as_run(model: Model, activations: str, most: DType) -> tuple[Model, str | None]:
    """The model as a CPU runs it, and the activation type for weights of type `most`; None: not a valid combination."""
    run = rounded_for(model, activations, "cpu")
    if activations == AUTO:
        activations = run.activations if most is DType.BF16 else FLOAT32
    return run, activation_type(most, activations)


def _most_bytes(model: Model) -> DType:
    """The data type of most of a model's weight bytes."""
    by_type: Counter[DType] = Counter()
    for value in model.graph.weights:
        by_type[value.dtype] += value_bytes(value, Sizes.decode(1, 1))
    return by_type.most_common(1)[0][0]


def _name(dtype: DType) -> str:
    return NAMES.get(dtype, dtype.value.lower())
