"""Logistic regression, as functions of weights and points."""

import numpy as np

FEATURES = 8


def load_data(partition_id: int, examples: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Returns a node's points (examples, 8) and labels 0 or 1; each node measures elsewhere."""
    rng = np.random.default_rng(partition_id)
    truth = np.random.default_rng(0).normal(size=FEATURES)
    points = rng.normal(loc=rng.normal(size=FEATURES), scale=3.0, size=(examples, FEATURES))
    chances = 1 / (1 + np.exp(-points @ truth))
    return points, (rng.random(examples) < chances).astype(float)


def loss_and_gradient(
    weights: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray]:
    """Returns the summed log loss and its gradient; the last weight is the intercept."""
    x = np.column_stack([x, np.ones(len(x))])
    logits = x @ weights
    loss = np.logaddexp(0, logits) - y * logits
    return float(loss.sum()), x.T @ (1 / (1 + np.exp(-logits)) - y)
