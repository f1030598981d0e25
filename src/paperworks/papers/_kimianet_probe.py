"""How well features tell classes apart: a linear classifier and an SVM on tiles, each tested on patients it has not seen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FOLDS, MOST = 5, 4000
"""parts of the patients, each of which is tested once; tiles that are looked at, evenly spread over all (an SVM takes time that
grows with their square)"""
KINDS = ("linear classifier", "SVM")


def probes(features: Tensor, labels: Tensor, patients: Sequence[str]) -> dict[str, float] | None:
    """Share of tiles whose class is told right by kind of classifier, each tile by one that learned from other patients.
    features: float [N, D], labels int64 [N], patients: of every tile. None where a class has a single patient."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    rows = torch.linspace(0, len(labels) - 1, min(MOST, len(labels))).round().long()
    x, y = features[rows].float().numpy(), labels[rows].numpy()
    folds = patient_folds(y, [patients[row] for row in rows.tolist()])
    if folds is None:
        return None
    right = dict.fromkeys(KINDS, 0)
    for fold in range(int(folds.max()) + 1):
        test = folds == fold
        for kind, model in zip(KINDS, (LogisticRegression(C=0.1, max_iter=300), SVC())):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # 300 rounds are all that a baseline gets
                fitted = make_pipeline(StandardScaler(), model).fit(x[~test], y[~test])
            right[kind] += int((fitted.predict(x[test]) == y[test]).sum())
    return {kind: count / len(y) for kind, count in right.items()}


def patient_folds(labels: np.ndarray, patients: Sequence[str], most: int = FOLDS) -> np.ndarray | None:
    """The fold of every tile, int [N]: a patient lies in one, and the patients of each class are dealt out evenly. None where
    a class has a single patient, or there is a single class."""
    class_of = dict(zip(patients, labels.tolist()))
    by_class = [sorted(name for name, label in class_of.items() if label == each) for each in sorted(set(class_of.values()))]
    fewest = min(len(names) for names in by_class)
    if fewest < 2 or len(by_class) < 2:
        return None
    count = min(most, fewest)
    fold_of = {name: number % count for names in by_class for number, name in enumerate(names)}
    return np.array([fold_of[name] for name in patients])
