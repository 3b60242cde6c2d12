"""What a flow has to beat: the normal density with the data's own mean and covariance."""

import numpy as np

from ocresnet.systems.architecture import require_whole


def normal_log_likelihood(train: np.ndarray, points: np.ndarray) -> np.ndarray:
    """log p of every point under the normal density that fits the training points best.

    Mean and (maximum-likelihood) covariance are those of the training points: no other normal
    density gives them a larger likelihood.

    Args:
      train: [samples, ...], flattened to features.
      points: [others, ...], of as many features.

    Returns:
      [others], float64, in nats.

    Raises:
      ValueError: for no more samples than features, or features that depend on each other, which
        no normal density has.
    """
    train, points = (
        np.reshape(values, (len(values), -1)).astype(np.float64) for values in (train, points)
    )
    samples, features = train.shape
    require_whole("samples", samples, features + 1)
    mean = train.mean(axis=0)
    scale = train.std(axis=0)
    if not (scale > 0).all():
        raise ValueError(f"feature {int(scale.argmin())} is the same in all training samples.")
    # In units of the deviations: the table's own may differ by many orders of magnitude.
    centred, moved = (train - mean) / scale, (points - mean) / scale
    covariance = centred.T @ centred / samples
    if np.linalg.matrix_rank(covariance, hermitian=True) < features:
        raise ValueError("the features depend on each other linearly: leave some of them out.")
    _, log_determinant = np.linalg.slogdet(covariance)
    distance = np.sum(moved * np.linalg.solve(covariance, moved.T).T, axis=-1)
    growth = log_determinant + 2 * np.log(scale).sum()
    return -0.5 * (distance + growth + features * np.log(2 * np.pi))
