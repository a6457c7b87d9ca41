"""Nearest labelled texts by a model's embeddings: centred, whitened, and compared by cosine.

Knows nothing about models, experts, votes or routes: a label is a number.

    vector -> minus the examples' mean -> divided by sqrt(s^2 + l) along each of their principal axes -> cosine

s^2 is the examples' scatter along an axis, l is SHRINK times its mean over the axes; the component outside all axes is
divided by sqrt(l). Embeddings of models not trained to compare texts lie close together, and differ mostly along a few
axes that tell little about a text's subject; without whitening, their cosines separate texts badly (docs/log.md).
The similarity of a prompt and a text is the geometric mean of two cosines, negative ones counted as 0: with the text,
and with the sum of its label's vectors. Source: Su et al., Whitening Sentence Representations (arXiv 2103.15316); the
regularisation l is added so that a few examples suffice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from coterie.composition.routers.neighbours import F64, Neighbour, nearest_of, shown

SHRINK = 0.3


class VectorNeighbours:
    """Texts [N] with labels and vectors [N, D]. Memory: 8 bytes x min(N, D) x (N + D), for examples and axes."""

    def __init__(self, texts: Sequence[str], labels: Sequence[int], vectors_ND: npt.NDArray[np.float32]) -> None:
        vectors = _unit(vectors_ND.astype(np.float64))
        self._texts = [shown(text) for text in texts]
        self._labels = np.asarray(labels, np.int32)
        self._mean_D: F64 = vectors.mean(axis=0)
        _, scatter, self._axes_ND = np.linalg.svd(vectors - self._mean_D, full_matrices=False)
        self._least = max(SHRINK * float((scatter**2).mean()), float(np.finfo(np.float64).tiny))
        self._scales: F64 = 1 / np.sqrt(scatter**2 + self._least)
        self._examples: F64 = _unit((vectors - self._mean_D) @ self._axes_ND.T * self._scales)
        sums = np.zeros((max(labels) + 1, self._examples.shape[1]))
        np.add.at(sums, self._labels, self._examples)
        self._sums: F64 = _unit(sums)

    def __len__(self) -> int:
        return len(self._texts)

    def nearest(self, vector: Sequence[float], count: int) -> tuple[Neighbour, ...]:
        """The `count` most similar texts, best first, ties as given; none with a similarity of 0."""
        return nearest_of(self.similarities(vector), count, self._labels, self._texts)

    def similarities(self, vector: Sequence[float]) -> F64:
        """The similarity of each text [N], in [0, 1]."""
        away = _unit(np.asarray(vector, np.float64)[None])[0] - self._mean_D
        along = self._axes_ND @ away
        beside = max(float(away @ away - along @ along), 0.0) / self._least
        white = along * self._scales
        white = white / max(float(np.sqrt(white @ white + beside)), 1e-30)
        cosines = np.maximum(self._examples @ white, 0) * np.maximum(self._sums @ white, 0)[self._labels]
        similarities: F64 = np.minimum(np.sqrt(cosines), 1.0)
        return similarities


def _unit(rows: F64) -> F64:
    lengths = np.sqrt((rows**2).sum(axis=-1, keepdims=True))
    found: F64 = rows / np.where(lengths > 0, lengths, 1)
    return found
