"""What the other candidates of a pool say about one: ridge regression that leaves it out."""

import numpy as np
from jaxtyping import Float

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of ridge, features of unit variance


def left_out_ridge(
    features: Float[np.ndarray, "n f"], errors: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Each candidate's error as ridge on the others predicts it; without features, their mean.

    Example:
        >>> left_out_ridge(np.zeros((3, 0)), np.array([1.0, 2.0, 6.0]))
        array([4. , 3.5, 1.5])
    """
    rows = np.arange(len(errors))
    predicted = []
    for i in rows:
        x, y = features[rows != i], errors[rows != i]
        inner = [np.sum((_ridge_predictions(x, y, penalty) - y) ** 2) for penalty in PENALTIES]
        predicted.append(_ridge(x, y, features[i], PENALTIES[int(np.argmin(inner))]))
    return np.array(predicted)


def _ridge_predictions(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    rows = np.arange(len(y))
    return np.array([_ridge(x[rows != i], y[rows != i], x[i], penalty) for i in rows])


def _ridge(x: np.ndarray, y: np.ndarray, at: np.ndarray, penalty: float) -> float:
    spread = x.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    z = (x - x.mean(0)) / scale
    gram = z.T @ z + penalty * np.eye(x.shape[1])
    return float(y.mean() + (at - x.mean(0)) / scale @ np.linalg.solve(gram, z.T @ (y - y.mean())))
