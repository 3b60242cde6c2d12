"""What Puettschneider et al. 2025 print: Tables 1, 2 and 3, to stand beside our own numbers."""

from typing import NamedTuple

TABLE_1: dict[tuple[str, str], dict[str, float]] = {
    ("mnist", "homogeneous"): {
        "full plain": 99.64,
        "cut plain": 99.63,
        "full shared": 99.62,
        "cut shared": 99.54,
        "full separate": 99.68,
        "cut separate": 99.64,
    },
    ("cifar10", "homogeneous"): {
        "full plain": 93.05,
        "cut plain": 91.43,
        "full shared": 91.59,
        "cut shared": 91.02,
        "full separate": 91.64,
        "cut separate": 91.26,
    },
    ("cifar100", "homogeneous"): {
        "full plain": 71.94,
        "cut plain": 68.77,
        "full shared": 69.97,
        "cut shared": 66.55,
        "full separate": 69.18,
        "cut separate": 66.66,
    },
    ("cifar10", "standard"): {
        "full plain": 93.28,
        "cut plain": 85.93,
        "full shared": 92.51,
        "cut shared": 78.74,
        "full separate": 92.91,
        "cut separate": 78.64,
    },
}
"""{(data set, architecture): {row: test accuracy in percent}}; full has 54 blocks, cut 12."""


class BoundsRow(NamedTuple):
    """A row of Tables 2 and 3 (CIFAR-10, gamma = 0.02, lambda = 1e-4, N = 54).

    Attributes:
      blocks: M, of the SubResNet.
      loss: its training loss, L-bar.
      objective: J_N(w^N) of the network trained with stage cost.
      objective_bound: J-bar_N of Theorem 1.
      average_loss: L_avg of the network trained with stage cost.
      average_loss_bound: L-bar_avg of Theorem 2, as printed.
    """

    blocks: int
    loss: float
    objective: float
    objective_bound: float
    average_loss: float
    average_loss_bound: float


BOUNDS: dict[str, tuple[BoundsRow, ...]] = {
    "standard": (
        BoundsRow(0, 1.326, 0.570, 2.758, 0.340, 2.507),
        BoundsRow(6, 0.327, 0.570, 1.173, 0.340, 21.238),
        BoundsRow(12, 0.252, 0.570, 1.186, 0.340, 28.063),
        BoundsRow(18, 0.228, 0.570, 1.274, 0.340, 34.451),
        BoundsRow(24, 0.072, 0.570, 1.549, 0.340, 58.629),
        BoundsRow(30, 0.006, 0.570, 2.128, 0.340, 90.931),
        BoundsRow(36, 0.004, 0.570, 2.409, 0.340, 103.758),
        BoundsRow(42, 0.002, 0.570, 2.189, 0.340, 93.293),
        BoundsRow(48, 0.001, 0.570, 2.253, 0.340, 96.334),
        BoundsRow(54, 0.002, 0.570, 2.232, 0.340, 94.822),
    ),
    "homogeneous": (
        BoundsRow(0, 1.188, 0.245, 2.470, 0.087, 2.246),
        BoundsRow(6, 0.003, 0.245, 0.421, 0.087, 13.275),
        BoundsRow(12, 0.001, 0.245, 0.537, 0.087, 18.518),
        BoundsRow(18, 0.001, 0.245, 0.574, 0.087, 20.260),
        BoundsRow(24, 0.005, 0.245, 0.728, 0.087, 25.312),
        BoundsRow(30, 0.001, 0.245, 0.761, 0.087, 28.229),
        BoundsRow(36, 0.001, 0.245, 0.813, 0.087, 30.843),
        BoundsRow(42, 0.001, 0.245, 0.801, 0.087, 30.287),
        BoundsRow(48, 0.004, 0.245, 0.925, 0.087, 34.440),
        BoundsRow(54, 0.001, 0.245, 0.942, 0.087, 36.772),
    ),
}
"""Table 2 (standard) and Table 3 (homogeneous)."""
