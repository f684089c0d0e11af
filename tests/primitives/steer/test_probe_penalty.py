"""A probe's penalty weighs |w|^2 / 2 against the sum of losses: SciPy finds the same minimum without scikit-learn."""

import numpy as np
import pytest
import scipy.optimize
import torch
from models.families import FAMILIES, scaled

from workbench.models import load
from workbench.primitives.read.capture import capture
from workbench.primitives.steer.directions import probe_direction

PENALTIES = (0.01, 1.0, 100.0, 1e6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return load(scaled(FAMILIES["gpt2"]()))


@pytest.fixture(scope="module")
def rows():
    """Token ids of 12 positive and 8 negative rows of five."""
    made = torch.randint(6, 64, (20, 5), generator=torch.Generator().manual_seed(1)).tolist()
    return made[:12], made[12:]


def weights(values: np.ndarray, labels: np.ndarray, penalty: float) -> np.ndarray:
    """argmin over w (and a free intercept) of sum log(1 + exp(-y (x.w + b))) + penalty |w|^2 / 2, y = -1 or 1."""

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        margin = labels * (values @ at[:-1] + at[-1])
        pull = -labels / (1 + np.exp(margin))  # derivative of the loss by x.w + b
        slope = np.append(values.T @ pull + penalty * at[:-1], pull.sum())
        return np.logaddexp(0, -margin).sum() + penalty * at[:-1] @ at[:-1] / 2, slope

    start, options = np.zeros(values.shape[1] + 1), {"maxiter": 10_000, "gtol": 1e-9, "ftol": 1e-15}
    return scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x[:-1]


def test_a_larger_penalty_is_a_stronger_one(model, rows):
    values = capture(model, rows[0] + rows[1], ["resid_post"], layers=[1], reduce="last")["resid_post", 1]
    values = values.double().numpy()
    labels = np.repeat([1.0, -1.0], [len(rows[0]), len(rows[1])])
    difference = values[labels > 0].mean(0) - values[labels < 0].mean(0)
    fitted = [weights(values, labels, penalty) for penalty in PENALTIES]
    found = [probe_direction(model, *rows, layer=1, penalty=penalty).vector.numpy() for penalty in PENALTIES]
    assert (np.diff([np.linalg.norm(w) for w in fitted]) < 0).all()  # a larger penalty, smaller weights
    for w, vector in zip(fitted, found, strict=True):
        assert vector @ w / np.linalg.norm(w) > 0.9999
    along = [vector @ difference / np.linalg.norm(difference) for vector in found]
    assert (np.diff(along) > 0).all() and along[0] < 0.9 < along[-1]  # weights held near 0 follow the means
