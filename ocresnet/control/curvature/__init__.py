"""Curvatures of the controls: what stands for M_k in d theta_k = -eta M_k^-1 d_k.

    identity   M = I                                   gradient descent
    diagonal   M = diag(sqrt(E[g * g]) + epsilon)      RMSprop
    kfac       M = A (x) G for every affine layer      K-FAC
    ekfac      the same eigenvectors, with second moments of the gradient as eigenvalues

Each serves `ocnopt(curvature=...)`, and alone, without control, `scale_by_curvature`.
"""

from typing import get_args

from ocresnet.control.curvature.diagonal import Diagonal, Identity
from ocresnet.control.curvature.kronecker import Kronecker, Moments
from ocresnet.control.curvature.kronecker_layers import Coupling
from ocresnet.control.curvature.protocol import Curvature

__all__ = ["Curvature", "diagonal", "ekfac", "identity", "kfac"]


def identity() -> Curvature:
    """M = I: the base optimizer is gradient descent."""
    return Identity()


def diagonal(decay: float = 0.99, epsilon: float = 1e-8) -> Curvature:
    """M = diag(sqrt(E[g * g]) + epsilon): the base optimizer is RMSprop.

    Args:
      decay: of the moving average of g * g, which starts at zero.
      epsilon: added to the root.

    Raises:
      ValueError: for a decay outside [0, 1) or an epsilon that is not positive.
    """
    require("decay", decay, 0 <= decay < 1, "in [0, 1)")
    require("epsilon", epsilon, epsilon > 0, "positive")
    return Diagonal(decay, epsilon)


def kfac(
    damping: float = 1e-3,
    decay: float = 0.95,
    factor_every: int = 10,
    factor_samples: int | None = 32,
    eigen_every: int = 100,
    coupling: Coupling | None = None,
) -> Curvature:
    """M = A (x) G for every dense or convolutional layer.

    Args:
      damping: lambda of (A (x) G + lambda I), split between the factors by their traces.
      decay: of the moving averages of A and G.
      factor_every: updates between two estimates of A and G; each costs a backward pass of the
        samples that it is made of.
      factor_samples: these, at most: the first ones of a batch, which is taken to be shuffled, on
        several devices of each device's part; None: all.
      eigen_every: updates between two eigendecompositions.
      coupling: of parallel layers, as the players of a stage have them. "separate": A and G for
        every layer. "concatenated": layers of one kind that read the same input are one layer with
        the channels of all. "schur": one A and one G for all of them, the papers' form. None:
        "concatenated"; in a Nash equilibrium, where M must be block diagonal over the players,
        "separate" (`kronecker_layers.py`).

    Raises:
      ValueError: for an impossible setting, saying what is allowed.
    """
    _check(damping, decay, factor_every, factor_samples, eigen_every, coupling)
    return Kronecker(
        damping,
        decay,
        factor_every,
        factor_samples,
        eigen_every,
        corrected=False,
        coupling=coupling,
    )


def ekfac(
    damping: float = 0.03,
    decay: float = 0.95,
    factor_every: int = 10,
    factor_samples: int | None = 32,
    eigen_every: int = 100,
    moments: Moments = "batch",
    coupling: Coupling | None = None,
) -> Curvature:
    """K-FAC's eigenvectors, with second moments of the gradient as eigenvalues.

    Args:
      damping: added to the second moments.
      decay: of the moving averages of A, G and m.
      factor_every: updates between two estimates of A and G; each costs a backward pass of the
        samples that it is made of.
      factor_samples: these, at most: the first ones of a batch, which is taken to be shuffled, on
        several devices of each device's part; None: all.
      eigen_every: updates between two eigendecompositions; m then starts again at a c^T.
      moments: "batch": m averages batch_size * (U_A^T D U_G)^2 over all updates, which costs two
        products of matrices each; "per_example": m averages the mean square of the single samples'
        rotated gradients, at every estimate of A and G (of a layer that is read at several depths,
        the sum of its squares at each).
      coupling: of parallel layers, as for `kfac`; m is that of whatever has factors together.

    Raises:
      ValueError: for an impossible setting, saying what is allowed.
    """
    _check(damping, decay, factor_every, factor_samples, eigen_every, coupling)
    if moments not in ("batch", "per_example"):
        raise ValueError(f"moments is {moments!r}, but must be one of batch, per_example.")
    return Kronecker(
        damping,
        decay,
        factor_every,
        factor_samples,
        eigen_every,
        corrected=True,
        moments=moments,
        coupling=coupling,
    )


def _check(
    damping: float,
    decay: float,
    factor_every: int,
    factor_samples: int | None,
    eigen_every: int,
    coupling: Coupling | None,
) -> None:
    require("damping", damping, damping > 0, "positive")
    require("decay", decay, 0 <= decay < 1, "in [0, 1)")
    for name, value in (("factor_every", factor_every), ("eigen_every", eigen_every)):
        whole = isinstance(value, int) and value >= 1
        require(name, value, whole, "a whole number, at least 1")
    some = isinstance(factor_samples, int) and factor_samples >= 1
    allowed = "a whole number, at least 1, or None"
    require("factor_samples", factor_samples, factor_samples is None or some, allowed)
    if coupling is not None and coupling not in get_args(Coupling):
        allowed = ", ".join(get_args(Coupling))
        raise ValueError(f"coupling is {coupling!r}, but must be one of {allowed}, or None.")


def require(name: str, value: object, holds: bool, what: str) -> None:
    """Refuse a setting, saying what is allowed."""
    if not holds:
        raise ValueError(f"{name} is {value!r}, but must be {what}.")
