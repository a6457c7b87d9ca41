"""The lexical router: a linear classifier over hashed character n-grams, evaluated in NumPy from stored arrays.

Knows nothing about how it was trained (lexical_train.py does).

The feature vector x is 1/sqrt(n) in the prompt's n distinct buckets and 0 elsewhere, so |x| = 1. Confidences are
softmax((W x + b) / temperature). One class may stand for "no expert": its confidence is added to the fallback's.
"""

from __future__ import annotations

import json
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.composition.router import NO_TEXT, Ask, Prompt, Result, Route, fall_back, ranked, too_unsure
from coterie.composition.routers.features import HashSettings, bucket_list, word_buckets
from coterie.core.errors import CompositionError
from coterie.core.parsed import parse_json

FORMAT_VERSION = 1
ZIP_MAGIC = b"PK\x03\x04"
OTHER = "(other)"  # the class for "no expert"; not a valid expert name
NUM_REASONS = 3
CLEAR_SHARE = 0.25  # a word is given as a reason if its lead is more than this share of the strongest word's
_MARKS = ".,;:!?\"'()[]{}"

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LexicalWeights:
    """A trained classifier. `classes` are expert names, and OTHER if it was trained with out-of-scope questions.

    weights_XF: one row per class (X) over hash buckets (F). bias_X. `temperature` divides the scores. `threshold`
    was calibrated in training. `settings` record how it was trained, as JSON-compatible values.
    """

    classes: tuple[str, ...]
    weights_XF: F32
    bias_X: F32
    temperature: float
    threshold: float
    hashing: HashSettings
    settings: Mapping[str, Any]

    @property
    def experts(self) -> tuple[str, ...]:
        """The classes without OTHER."""
        return tuple(name for name in self.classes if name != OTHER)

    def confidences(self, text: str) -> npt.NDArray[np.float64]:
        """Confidence per class [X]; they sum to one."""
        buckets = bucket_list(text, self.hashing)
        scores = self._sums(buckets) / np.sqrt(max(len(buckets), 1))
        return softmax(scores + self.bias_X, self.temperature)

    def _sums(self, buckets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        # read_weights stores the weights column-major, so that a bucket's classes are contiguous
        return np.asarray(self.weights_XF.T[buckets].sum(axis=0, dtype=np.float64), dtype=np.float64)

    def telling_words(self, text: str, chosen: int) -> tuple[str, ...]:
        """The words whose score for the chosen class exceeds the mean over classes most, strongest first, in quotes."""
        spoke: dict[str, float] = {}
        for word, buckets in word_buckets(text, self.hashing).items():
            lead_X = self._sums(buckets)
            spoke[word] = float(lead_X[chosen] - lead_X.mean())
        best = sorted(spoke, key=lambda word: -spoke[word])[:NUM_REASONS]
        clear = [word for word in best if spoke[word] > max(0.0, CLEAR_SHARE * spoke[best[0]])]
        return tuple(dict.fromkeys(map(_quoted, clear)))


def softmax(scores: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    """softmax(scores / temperature) along the last axis."""
    scaled = scores / temperature
    shares = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True), dtype=np.float64)


def _quoted(word: str) -> str:
    bare = word.strip(_MARKS) or word
    return "a number" if set(bare) == {"0"} else repr(bare)


class LexicalRouter:
    """Chooses the expert whose training questions the prompt resembles most, or the fallback if it is unsure."""

    def __init__(self, weights: LexicalWeights, fallback: str, threshold: float | None = None) -> None:
        self.weights, self.fallback = weights, fallback
        self.threshold = weights.threshold if threshold is None else threshold

    def ask(self, prompt: Prompt) -> tuple[Ask, ...]:
        """Nothing: the text is enough."""
        return ()

    def decide(self, prompt: Prompt, results: Sequence[Result] = ()) -> Route:
        """The route of the last user message."""
        if not prompt.text.strip():
            return fall_back(self.fallback, {}, NO_TEXT)
        shares = self.weights.confidences(prompt.text)
        confidences: dict[str, float] = {}
        for name, share in zip(self.weights.classes, shares, strict=True):
            owner = self.fallback if name == OTHER else name
            confidences[owner] = min(1.0, confidences.get(owner, 0.0) + float(share))
        best = int(shares.argmax())
        name, share = self.weights.classes[best], float(shares[best])
        if name == OTHER:
            return fall_back(self.fallback, confidences, "it reads like none of the experts' questions")
        if share < self.threshold and name != self.fallback:
            return fall_back(self.fallback, confidences, too_unsure(name, share, self.threshold))
        telling = ", ".join(self.weights.telling_words(prompt.text, best))
        return Route(name, confidences[name], ranked(confidences, name), f"because: {telling or 'its wording'}")


def write_weights(path: Path, weights: LexicalWeights) -> None:
    """Write a classifier as a compressed .npz of plain arrays; weights are rounded to float16."""
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            version=np.int64(FORMAT_VERSION),
            classes=np.asarray(weights.classes),
            weights=weights.weights_XF.astype(np.float16),
            bias=weights.bias_X.astype(np.float32),
            calibration=np.asarray([weights.temperature, weights.threshold], dtype=np.float64),
            hashing=np.asarray([weights.hashing.ngram_min, weights.hashing.ngram_max, weights.hashing.dimension]),
            settings=np.asarray(json.dumps(weights.settings, sort_keys=True)),
        )


def read_weights(path: Path) -> LexicalWeights:
    """Read a classifier written by `write_weights`. Nothing in the file is executed (no pickles).

    Raises CompositionError if the file cannot be read, an array is missing, or version, shapes or values are invalid.
    """
    stored = _read_arrays(path)
    missing = [name for name in _ARRAYS if name not in stored]
    if missing:
        raise CompositionError(str(path), f"the router file has no {', '.join(missing)}", _TRAIN_AGAIN)
    version = stored["version"]
    if version.shape != () or version != FORMAT_VERSION:
        fact = f"the router file has format version {version}, but this program reads {FORMAT_VERSION}"
        raise CompositionError(str(path), fact, _TRAIN_AGAIN)
    _check_arrays(path, stored)
    temperature, threshold = map(float, stored["calibration"])
    return LexicalWeights(
        classes=tuple(map(str, stored["classes"])),
        weights_XF=np.asfortranarray(stored["weights"], dtype=np.float32),
        bias_X=stored["bias"].astype(np.float32),
        temperature=temperature,
        threshold=threshold,
        hashing=HashSettings(*map(int, stored["hashing"])),
        settings=_read_settings(path, str(stored["settings"])),
    )


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        # opened here, since np.load leaks the file of a broken archive
        with path.open("rb") as file:
            if file.read(4) != ZIP_MAGIC:
                raise CompositionError(str(path), "this is not a router file: it is no archive", _TRAIN_AGAIN)
            file.seek(0)
            size_bytes = sum(entry.file_size for entry in zipfile.ZipFile(file).infolist())
            if size_bytes > _MAX_BYTES:
                fact = f"its arrays say that they have {size_bytes} bytes, and {_MAX_BYTES} are possible"
                raise CompositionError(str(path), f"this is not a router file: {fact}", _TRAIN_AGAIN)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in _ARRAYS if name in arrays.files}
        return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
    except _UNREADABLE as error:
        raise CompositionError(str(path), f"this is not a router file: {error}", _TRAIN_AGAIN) from error


# what NumPy and zipfile raise for damaged archives; RuntimeError for encrypted or unsupported zip files
_UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, TypeError, OverflowError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
_MAX_BYTES = 256 << 20  # twice the size of 500 experts with 2**16 buckets in float32
_TRAIN_AGAIN = "train the router again (demo/train_router.py)"
# name -> shape in letters, and NumPy dtype kind
_ARRAYS = {
    "version": ("", "i"),
    "classes": ("X", "U"),
    "hashing": ("3", "i"),
    "weights": ("XF", "f"),
    "bias": ("X", "f"),
    "calibration": ("2", "f"),
    "settings": ("", "U"),
}


def _check_arrays(path: Path, stored: Mapping[str, npt.NDArray[Any]]) -> None:
    sizes = {"X": stored["classes"].size, "F": int(stored["hashing"].flat[2]) if stored["hashing"].size == 3 else -1}
    for name, (letters, kind) in _ARRAYS.items():
        expected = tuple(sizes[letter] if letter in sizes else int(letter) for letter in letters)
        array = stored[name]
        if array.shape != expected or array.dtype.kind != kind:
            fact = f"{name} is {array.dtype}{list(array.shape)}, not of kind {kind!r} and shape {list(expected)}"
            raise CompositionError(str(path), fact, _TRAIN_AGAIN)
        if kind == "U" and array.size and array.reshape(-1).view(np.uint32).max() > sys.maxunicode:
            raise CompositionError(str(path), f"{name} holds what is no character", _TRAIN_AGAIN)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CompositionError(str(path), f"{name} holds values that are not finite", _TRAIN_AGAIN)
    low, high, dimension = map(int, stored["hashing"])
    temperature, threshold = map(float, stored["calibration"])
    classes = stored["classes"].tolist()
    faults = {
        f"n-grams of {low} to {high} characters in {dimension} buckets": 1 <= low <= high <= 16 and dimension >= 1,
        f"temperature {temperature}": temperature > 0,
        f"threshold {threshold}": 0 <= threshold <= 1,
        f"classes {classes}": len(classes) == len(set(classes)) and any(name != OTHER for name in classes),
    }
    for fact, is_right in faults.items():
        if not is_right:
            raise CompositionError(str(path), f"the router file has {fact}, which cannot be", _TRAIN_AGAIN)


def _read_settings(path: Path, text: str) -> Mapping[str, Any]:
    settings = parse_json(text, f"{path}: training settings", _TRAIN_AGAIN, CompositionError)
    if not isinstance(settings, dict):
        raise CompositionError(str(path), "its training settings are not a JSON object", _TRAIN_AGAIN)
    return settings
