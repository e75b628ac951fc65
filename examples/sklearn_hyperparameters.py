"""Hyper-parameters of a support vector machine on scikit-learn's digits, by ask and tell.

The space mixes what ASNG mixes: a categorical, an integer and two real variables.
"""

from __future__ import annotations

from typing import Any

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

import asng_ext as asng

SPACE = asng.SearchSpace(
    {
        "kernel": asng.Categorical(["linear", "poly", "rbf", "sigmoid"]),
        "degree": asng.Integer(2, 6),  # of "poly" only; the others ignore it
        "C": asng.Real(1e-3, 1e3, log=True),
        "gamma": asng.Real(1e-6, 1.0, log=True),
    }
)


def make_model(sample: dict[str, Any]) -> SVC:
    return SVC(**sample)


def main(evaluations: int = 160) -> None:
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, train_size=600, stratify=y, random_state=0)
    x, x_valid, y, y_valid = train_test_split(x, y, train_size=300, stratify=y, random_state=0)
    optimizer = asng.ASNG(SPACE, seed=0, maximize=True, evaluation_limit=evaluations)
    while not optimizer.should_stop():
        samples = optimizer.ask()
        scores = [make_model(sample).fit(x, y).score(x_valid, y_valid) for sample in samples]
        optimizer.tell(samples, scores)
        if optimizer.generation % 5 == 0:
            mean = sum(scores) / len(scores)
            print(f"{optimizer.generation * len(scores)} evaluations: mean accuracy {mean:.3f}")
    best = optimizer.best
    assert best is not None
    print(
        "best",
        {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in best.sample.items()},
    )
    test_score = make_model(best.sample).fit(x, y).score(x_test, y_test)
    print(f"validation accuracy {best.loss:.3f}, test accuracy {test_score:.3f}")


if __name__ == "__main__":
    main()
