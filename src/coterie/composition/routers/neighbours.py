"""Nearest labelled texts: an inverted index of character n-grams, searched exactly, in plain NumPy arrays.

Knows nothing about experts, votes or routes: a label is a number.

    text -> 64-bit hashes of its distinct n-grams -> posting list of each n-gram -> a score per text -> the k best

The weight of an n-gram is ln((X + 1) / m), similar to an inverse document frequency. X is the number of labels; m is
the effective number of labels that the n-gram is spread over: exp(entropy) of the shares of each label's texts that
contain it, so 1 if only one label has it and X if all have it equally. An n-gram in no text counts as m = 1.
The similarity of a prompt and a text, in [0, 1], is the geometric mean of two cosines of such weight vectors: with
the text, and with its label (the sum of the unit vectors of the label's texts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.composition.routers.features import U64, gram_hashes, gram_hashes_of

NGRAM_MIN, NGRAM_MAX = 2, 4
MAX_POSTINGS = 2**20  # gathered at a time, so that a search's temporary arrays stay below 24 MiB
MAX_SHOWN = 80  # characters kept of each text, for display

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A text that was found: its label, its similarity in [0, 1], and its beginning."""

    label: int
    similarity: float
    text: str


class Neighbours:
    """An index of labelled texts. Texts with one label and equal features count once, as "add 1 and 2", "add 3 and 4".

    Memory: 4 bytes per distinct n-gram of each text, 24 per distinct n-gram overall, and 12 per text; while it is
    built, about 60 bytes per distinct n-gram of each text.
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[int]) -> None:
        """Blank texts are left out."""
        rows: dict[tuple[int, bytes], str] = {}
        for text, label, hashes in zip(texts, labels, gram_hashes_of(texts, NGRAM_MIN, NGRAM_MAX), strict=True):
            if len(hashes):
                rows.setdefault((label, hashes.tobytes()), shown(text))
        # sorted by label, so that each posting list is sorted by label too
        ordered = sorted(rows, key=lambda row: row[0])
        self._texts = [rows[row] for row in ordered]
        self._labels = np.asarray([label for label, _ in ordered], dtype=np.int32)
        lengths = np.asarray([len(hashes) // 8 for _, hashes in ordered], dtype=np.int64)
        held = np.frombuffer(b"".join(hashes for _, hashes in ordered), dtype=np.uint64)
        del rows, ordered
        self._index(held, lengths)

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def size_bytes(self) -> int:
        """Bytes of the arrays, without the beginnings of texts."""
        by_gram, by_text = (self._grams, self._starts, self._squares), (self._texts_of, self._norms, self._labels)
        return sum(array.nbytes for array in by_gram + by_text)

    def nearest(self, text: str, count: int) -> tuple[Neighbour, ...]:
        """The `count` most similar texts, best first, ties by label, then as given; none with a similarity of 0."""
        return nearest_of(self.similarities(text), count, self._labels, self._texts)

    def similarities(self, text: str) -> F64:
        """The similarity of each text [N]."""
        hashes = gram_hashes(text, NGRAM_MIN, NGRAM_MAX)
        if not len(hashes) or not len(self._grams):
            return np.zeros(len(self), dtype=np.float64)
        at = np.minimum(np.searchsorted(self._grams, hashes), len(self._grams) - 1)
        known = at[self._grams[at] == hashes]
        square = self._squares[known].sum() + (len(hashes) - len(known)) * self._unknown_square
        cosines = self._sums(known) / (self._norms * np.sqrt(square))
        by_label = np.bincount(self._labels, cosines) / self._label_norms
        # rounding can exceed 1 for a text and itself
        similarities: F64 = np.minimum(np.sqrt(cosines * by_label[self._labels]), 1.0)
        return similarities

    def _index(self, held: U64, lengths: I64) -> None:
        """Build the arrays over distinct n-grams (G), their posting lists, concatenated (P), and texts (N)."""
        order = np.argsort(held, kind="stable")
        self._texts_of: I32 = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[order]
        held = held[order]
        is_first = np.append(True, held[1:] != held[:-1])[: len(held)]
        self._grams = held[is_first]
        self._starts = np.append(np.flatnonzero(is_first), len(held))
        # runs (R): the stretch of an n-gram's posting list with one label
        labels_P = self._labels[self._texts_of]
        runs = np.flatnonzero(is_first | np.append(True, labels_P[1:] != labels_P[:-1])[: len(held)])
        labels_R, grams_R = labels_P[runs], np.cumsum(is_first[runs]) - 1
        sizes = np.bincount(self._labels, minlength=1)
        spread_G = _spread(grams_R, np.diff(np.append(runs, len(held))) / sizes[labels_R])
        unknown = float(np.log(np.count_nonzero(sizes) + 1))
        self._squares, self._unknown_square = (unknown - np.log(spread_G)) ** 2, unknown**2
        squares_P = np.repeat(self._squares, np.diff(self._starts))
        self._norms: F64 = np.sqrt(np.bincount(self._texts_of, squares_P, minlength=len(lengths)))
        # a label's vector is the sum of its texts' unit vectors
        sums_R = np.add.reduceat((1 / self._norms)[self._texts_of], runs) if len(runs) else np.zeros(0)
        squares_X = np.bincount(labels_R, sums_R**2 * self._squares[grams_R], minlength=len(sizes))
        self._label_norms: F64 = np.sqrt(np.where(sizes > 0, squares_X, 1.0))  # 1 for an unused label

    def _sums(self, grams: I64) -> F64:
        """For each text, the sum of the squared weights of those of these n-grams that it contains [N]."""
        sums = np.zeros(len(self), dtype=np.float64)
        starts, ends = self._starts[grams], self._starts[grams + 1]
        for part in _parts(ends - starts):
            places = zip(starts[part].tolist(), ends[part].tolist(), strict=True)
            texts = np.concatenate([self._texts_of[start:end] for start, end in places])
            squares = np.repeat(self._squares[grams[part]], (ends - starts)[part])
            sums += np.bincount(texts, squares, minlength=len(self))
        return sums


def nearest_of(similarities: F64, count: int, labels: I32, texts: Sequence[str]) -> tuple[Neighbour, ...]:
    """The `count` most similar texts, best first, ties in their order; none with a similarity of 0."""
    count = min(count, len(similarities))
    if not count:
        return ()
    least = np.partition(similarities, -count)[-count]
    close = np.flatnonzero(similarities >= max(least, np.finfo(np.float64).tiny))
    best = close[np.argsort(-similarities[close], kind="stable")][:count].tolist()
    return tuple(Neighbour(int(labels[i]), float(similarities[i]), texts[i]) for i in best)


def _spread(grams_R: I64, shares_R: F64) -> F64:
    """The effective number of labels of each n-gram [G], at least 1, from the shares of their texts that contain it."""
    shares_R = shares_R / np.bincount(grams_R, shares_R)[grams_R]
    return np.maximum(np.exp(np.bincount(grams_R, -shares_R * np.log(shares_R))), 1.0)


def _parts(lengths: I64) -> Iterator[slice]:
    """Cut a list of lengths into parts that each sum to less than MAX_POSTINGS, or are a single length."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + MAX_POSTINGS)), first + 1)
        yield slice(first, last)
        first = last


def shown(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * MAX_SHOWN].split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 3] + "..."
