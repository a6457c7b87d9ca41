"""Nearest labelled texts: an inverted index of character n-grams, searched exactly, in plain NumPy arrays.

Knows nothing about experts, votes or routes: a label is a number.

    text -> 64-bit hashes of its distinct n-grams -> per n-gram the texts that hold it -> a sum per text -> the k best

An n-gram weighs ln((X + 1) / m). X is the number of labels; m is among how many of them the n-gram is spread:
exp(entropy) of the share of each label's texts that hold it, so 1 where one label has it and X where all have it alike.
One that no text holds weighs as if one label had it. How alike a prompt and a text are is the geometric mean of two
cosines of such vectors, in [0, 1]: with the text, and with all texts of its label (the sum of their unit vectors).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.composition.routers.features import U64, gram_hashes, gram_hashes_of

NGRAM_MIN, NGRAM_MAX = 2, 4
MAX_POSTINGS = 2**20  # gathered at a time: what a search holds beside its sums stays below 24 MiB
MAX_SHOWN = 80  # characters of a text that are kept, to be shown

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A text that was found: its label, how alike it is in [0, 1], and its beginning."""

    label: int
    similarity: float
    text: str


class Neighbours:
    """Texts and their labels. Equal features under one label are one text: "add 1 and 2" is "add 3 and 4".

    Four bytes for each distinct n-gram of each text, 24 for each of all texts together, and 12 for each text; while it
    is made, about 60 for each distinct n-gram of each text.
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[int]) -> None:
        """Texts without a character that is not blank are left out."""
        rows: dict[tuple[int, bytes], str] = {}
        for text, label, hashes in zip(texts, labels, gram_hashes_of(texts, NGRAM_MIN, NGRAM_MAX), strict=True):
            if len(hashes):
                rows.setdefault((label, hashes.tobytes()), shown(text))
        # by label, so that each n-gram's texts are too
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
        """Bytes of the arrays, without the texts that are shown."""
        by_gram, by_text = (self._grams, self._starts, self._squares), (self._texts_of, self._norms, self._labels)
        return sum(array.nbytes for array in by_gram + by_text)

    def nearest(self, text: str, count: int) -> tuple[Neighbour, ...]:
        """The most similar texts, best first, at most `count`, equals by label, then as given; not those of 0."""
        return nearest_of(self.similarities(text), count, self._labels, self._texts)

    def similarities(self, text: str) -> F64:
        """How alike each text is [N]."""
        hashes = gram_hashes(text, NGRAM_MIN, NGRAM_MAX)
        if not len(hashes) or not len(self._grams):
            return np.zeros(len(self), dtype=np.float64)
        at = np.minimum(np.searchsorted(self._grams, hashes), len(self._grams) - 1)
        known = at[self._grams[at] == hashes]
        square = self._squares[known].sum() + (len(hashes) - len(known)) * self._unknown_square
        cosines = self._sums(known) / (self._norms * np.sqrt(square))
        by_label = np.bincount(self._labels, cosines) / self._label_norms
        # rounding can make a text more than like itself
        similarities: F64 = np.minimum(np.sqrt(cosines * by_label[self._labels]), 1.0)
        return similarities

    def _index(self, held: U64, lengths: I64) -> None:
        """Arrays over the distinct n-grams (G), their texts one after the other (P), and the texts (N)."""
        order = np.argsort(held, kind="stable")
        self._texts_of: I32 = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[order]
        held = held[order]
        is_first = np.append(True, held[1:] != held[:-1])[: len(held)]
        self._grams = held[is_first]
        self._starts = np.append(np.flatnonzero(is_first), len(held))
        # runs (R) of one n-gram's texts under one label
        labels_P = self._labels[self._texts_of]
        runs = np.flatnonzero(is_first | np.append(True, labels_P[1:] != labels_P[:-1])[: len(held)])
        labels_R, grams_R = labels_P[runs], np.cumsum(is_first[runs]) - 1
        sizes = np.bincount(self._labels, minlength=1)
        spread_G = _spread(grams_R, np.diff(np.append(runs, len(held))) / sizes[labels_R])
        unknown = float(np.log(np.count_nonzero(sizes) + 1))
        self._squares, self._unknown_square = (unknown - np.log(spread_G)) ** 2, unknown**2
        squares_P = np.repeat(self._squares, np.diff(self._starts))
        self._norms: F64 = np.sqrt(np.bincount(self._texts_of, squares_P, minlength=len(lengths)))
        # the vector of a label: at each n-gram the sum of what its texts' unit vectors have there
        sums_R = np.add.reduceat((1 / self._norms)[self._texts_of], runs) if len(runs) else np.zeros(0)
        squares_X = np.bincount(labels_R, sums_R**2 * self._squares[grams_R], minlength=len(sizes))
        self._label_norms: F64 = np.sqrt(np.where(sizes > 0, squares_X, 1.0))  # 1 for a number that labels nothing

    def _sums(self, grams: I64) -> F64:
        """Squares of the weights of these n-grams, summed for each text that holds them [N]."""
        sums = np.zeros(len(self), dtype=np.float64)
        starts, ends = self._starts[grams], self._starts[grams + 1]
        for part in _parts(ends - starts):
            places = zip(starts[part].tolist(), ends[part].tolist(), strict=True)
            texts = np.concatenate([self._texts_of[start:end] for start, end in places])
            squares = np.repeat(self._squares[grams[part]], (ends - starts)[part])
            sums += np.bincount(texts, squares, minlength=len(self))
        return sums


def nearest_of(similarities: F64, count: int, labels: I32, texts: Sequence[str]) -> tuple[Neighbour, ...]:
    """The texts that are most alike, best first, at most `count`, equals in their order; not those of 0."""
    count = min(count, len(similarities))
    if not count:
        return ()
    least = np.partition(similarities, -count)[-count]
    close = np.flatnonzero(similarities >= max(least, np.finfo(np.float64).tiny))
    best = close[np.argsort(-similarities[close], kind="stable")][:count].tolist()
    return tuple(Neighbour(int(labels[i]), float(similarities[i]), texts[i]) for i in best)


def _spread(grams_R: I64, shares_R: F64) -> F64:
    """Among how many labels each n-gram is spread [G], 1 at least, from the shares of their texts that hold it."""
    shares_R = shares_R / np.bincount(grams_R, shares_R)[grams_R]
    return np.maximum(np.exp(np.bincount(grams_R, -shares_R * np.log(shares_R))), 1.0)


def _parts(lengths: I64) -> Iterator[slice]:
    """Cuts a list of lengths so that each part sums to less than MAX_POSTINGS, or has one length."""
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
