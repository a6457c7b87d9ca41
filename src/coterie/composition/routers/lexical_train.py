"""Trains and calibrates the lexical router's classifier; needs scikit-learn (the extra `train`).

Knows nothing about where the questions come from. Nothing that serves prompts imports this module.

    folds by group -> out-of-fold scores -> temperature, threshold        a fit on all questions -> weights
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from coterie.composition.routers.features import HashSettings, bucket_list
from coterie.composition.routers.lexical import OTHER, LexicalWeights, softmax
from coterie.composition.sweep import SweepPoint

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

ABSENT = -100.0
THRESHOLDS = (*(round(0.05 * step, 2) for step in range(1, 20)), 0.97, 0.99)


@dataclass(frozen=True, slots=True)
class TrainingQuestion:
    """A question for an expert; None: out of scope.

    `group` identifies its wording. Folds hold out whole groups, so that calibration uses wordings unseen in the fit.
    """

    text: str
    expert: str | None
    group: str


@dataclass(frozen=True, slots=True)
class FitSettings:
    """`inverse_penalty` is scikit-learn's C. `max_loss`: share of in-scope questions that the threshold may lose."""

    hashing: HashSettings = field(default_factory=HashSettings)
    inverse_penalty: float = 100.0
    max_iterations: int = 100
    tolerance: float = 3e-4
    num_folds: int = 3
    max_loss: float = 0.01


@dataclass(frozen=True, slots=True)
class Trained:
    """The classifier, and the out-of-fold sweep of thresholds from which its own was chosen."""

    weights: LexicalWeights
    sweep: tuple[SweepPoint, ...]


def train(questions: Sequence[TrainingQuestion], settings: FitSettings, notes: Mapping[str, Any]) -> Trained:
    """Train on all questions; temperature and threshold come from out-of-fold scores. Deterministic.

    `notes` are stored with the weights. Raises ValueError if there are fewer than two classes.
    """
    names = [OTHER if q.expert is None else q.expert for q in questions]
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise ValueError(f"a router needs two classes or more but the questions have {len(classes)}")
    labels = np.asarray([classes.index(name) for name in names], dtype=np.int64)
    features = _features([q.text for q in questions], settings.hashing)
    folds = np.asarray([zlib.crc32(q.group.encode()) % settings.num_folds for q in questions])
    scores = np.zeros((len(questions), len(classes)))
    for fold in range(settings.num_folds):
        weights, bias = _fit(features[folds != fold], labels[folds != fold], len(classes), settings)
        scores[folds == fold] = features[folds == fold] @ weights.T + bias
    temperature = _temperature(scores, labels)
    shares = softmax(scores, temperature)
    other = classes.index(OTHER) if OTHER in classes else None
    sweep = tuple(_sweep_point(shares, labels, other, threshold) for threshold in THRESHOLDS)
    weights, bias = _fit(features, labels, len(classes), settings)
    threshold = choose_threshold(sweep, settings.max_loss)
    stored = LexicalWeights(
        classes=classes,
        weights_XF=weights.astype(np.float32),
        bias_X=bias.astype(np.float32),
        temperature=temperature,
        threshold=threshold,
        hashing=settings.hashing,
        settings={**notes, "inverse_penalty": settings.inverse_penalty, "num_questions": len(questions)},
    )
    return Trained(stored, sweep)


def choose_threshold(sweep: Sequence[SweepPoint], max_loss: float) -> float:
    """The highest threshold that loses at most `max_loss` of the in-scope questions: it rejects the most others."""
    best = max(point.in_scope_right for point in sweep)
    return max(point.value for point in sweep if point.in_scope_right >= best - max_loss)


def _features(texts: Sequence[str], hashing: HashSettings) -> csr_matrix:
    rows = [bucket_list(text, hashing) for text in texts]
    lengths = np.asarray([len(row) for row in rows])
    values = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((values, np.concatenate(rows), starts), shape=(len(texts), hashing.dimension))


def _fit(features: csr_matrix, labels: I64, num_classes: int, settings: FitSettings) -> tuple[F64, F64]:
    """Weights [X, F] and bias [X] of a multinomial logistic regression; a class without questions scores ABSENT."""
    model = LogisticRegression(C=settings.inverse_penalty, max_iter=settings.max_iterations, tol=settings.tolerance)
    model.fit(features, labels)
    # for two classes, scikit-learn stores only the second one's coefficients
    two = len(model.classes_) == 2
    weights, bias = np.zeros((num_classes, features.shape[1])), np.full(num_classes, ABSENT)
    weights[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2 if two else model.coef_
    bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2 if two else model.intercept_
    return weights, bias


def _temperature(scores: F64, labels: I64) -> float:
    """The temperature that maximises the likelihood of the labels."""

    def loss(log_temperature: float) -> float:
        shares = softmax(scores, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(shares[np.arange(len(labels)), labels], 1e-12)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def _sweep_point(shares: F64, labels: I64, other: int | None, threshold: float) -> SweepPoint:
    best = shares.argmax(axis=1)
    to_fallback = (best == other) | (shares.max(axis=1) < threshold)
    inside = labels != other
    right = (best == labels) & ~to_fallback
    return SweepPoint(
        setting="threshold",
        value=threshold,
        in_scope_right=float(right[inside].mean()),
        in_scope_to_fallback=float(to_fallback[inside].mean()),
        out_of_scope_to_fallback=float(to_fallback[~inside].mean()) if not inside.all() else 1.0,
    )
