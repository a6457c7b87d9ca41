"""Dense layers applied to an embedding after pooling, as sentence-transformers saves them.

    2_Dense/config.json          in_features, out_features, bias, activation_function
    2_Dense/model.safetensors    linear.weight [out, in], linear.bias [out]

Knows nothing about what the vectors are of. Source: sentence_transformers.models.Dense (sbert.net).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import erf, sqrt
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.files import read_object
from coterie.checkpoint.safetensors import TensorInfo, read_header
from coterie.core.dtypes import to_f32
from coterie.core.errors import CheckpointError, UnsupportedError, shown

WEIGHTS = "model.safetensors"
Activation: TypeAlias = Literal["none", "tanh", "gelu"]
_ACTIVATIONS: Mapping[str, Activation] = {"Identity": "none", "Tanh": "tanh"}
_ERF = np.vectorize(erf, otypes=[np.float64])  # numpy has none


@dataclass(frozen=True, slots=True)
class Norm:
    """y = (x - mean) / std * weight + bias."""

    weight_O: npt.NDArray[np.float32] = field(compare=False)
    bias_O: npt.NDArray[np.float32] | None = field(compare=False)
    eps: float

    def of(self, y_NO: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Layer norm of each row."""
        away_NO = y_NO - y_NO.mean(axis=1, keepdims=True)
        y_NO = away_NO / np.sqrt((away_NO**2).mean(axis=1, keepdims=True) + self.eps) * self.weight_O
        return y_NO if self.bias_O is None else y_NO + self.bias_O


@dataclass(frozen=True, slots=True)
class Dense:
    """y = norm(activation(W x + b)). `where`: its folder, for error messages."""

    where: str
    weight_OI: npt.NDArray[np.float32] = field(compare=False)
    bias_O: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    activation: Activation = "none"
    norm: Norm | None = None

    def of(self, vectors_NI: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Apply the layer to vectors. Raises CheckpointError for vectors of another length."""
        if vectors_NI.shape[-1] != self.weight_OI.shape[1]:
            fact = f"takes {self.weight_OI.shape[1]} numbers where the model gives {vectors_NI.shape[-1]}"
            raise CheckpointError(self.where, fact, "download the folder again")
        y_NO = vectors_NI.astype(np.float64) @ self.weight_OI.T.astype(np.float64)
        y_NO = y_NO if self.bias_O is None else y_NO + self.bias_O
        if self.activation == "tanh":
            y_NO = np.tanh(y_NO)
        elif self.activation == "gelu":
            y_NO = y_NO * 0.5 * (1 + _ERF(y_NO / sqrt(2)))
        return np.asarray(y_NO if self.norm is None else self.norm.of(y_NO), np.float32)


def read_dense(folder: Path) -> Dense:
    """Read the layer in a folder. Raises CheckpointError, and UnsupportedError for an unsupported activation."""
    config = read_object(folder / "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        fact = f"activation_function is {shown(name)}, which is not supported"
        raise UnsupportedError(str(folder), fact, f"Coterie runs {' and '.join(_ACTIVATIONS)}")
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(str(folder), f"has no {WEIGHTS}", "save it as safetensors, or download the folder again")
    tensors = read_header(folder / WEIGHTS)
    sizes = config.get("out_features"), config.get("in_features")
    weight = tensors.get("linear.weight")
    if weight is None or weight.shape != sizes:
        found = "is missing" if weight is None else f"has shape {list(weight.shape)}"
        fact = f"linear.weight {found}, and config.json says {list(sizes)}"
        raise CheckpointError(str(folder), fact, "download the folder again")
    bias = tensors.get("linear.bias")
    if bias is not None and bias.shape != weight.shape[:1]:
        fact = f"linear.bias has shape {list(bias.shape)}, and linear.weight {list(weight.shape)}"
        raise CheckpointError(str(folder), fact, "download the folder again")
    return Dense(str(folder), numbers(weight), None if bias is None else numbers(bias), _ACTIVATIONS[name])


def dense_config(rows: int, columns: int) -> dict[str, Any]:
    """The config.json of a layer that is only a matrix: no bias, no activation."""
    sizes = {"in_features": columns, "out_features": rows, "bias": False}
    return sizes | {"activation_function": "torch.nn.modules.linear.Identity"}


def numbers(info: TensorInfo) -> npt.NDArray[np.float32]:
    """Read a tensor as float32. Raises CheckpointError."""
    if not info.dtype.is_float:
        fact = f"{info.name} has element type {info.dtype.value} but F32, F16 or BF16 is wanted"
        raise CheckpointError(info.shard.path, fact, "save the weights unquantised")
    try:
        with Path(info.shard.path).open("rb") as file:
            file.seek(info.offset)
            data = np.frombuffer(file.read(info.size_bytes), info.dtype.numpy)
        return to_f32(data, info.dtype).reshape(info.shape)
    except (OSError, ValueError) as error:
        raise CheckpointError(info.shard.path, f"cannot be read: {error}", "download the file again") from None
