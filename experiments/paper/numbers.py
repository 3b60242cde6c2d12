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
      objective_gap: their difference.
      average_loss: L_avg of the network trained with stage cost.
      average_loss_bound: L-bar_avg of Theorem 2, as printed.
      average_loss_gap: their difference.
    """

    blocks: int
    loss: float
    objective: float
    objective_bound: float
    objective_gap: float
    average_loss: float
    average_loss_bound: float
    average_loss_gap: float


BOUNDS: dict[str, tuple[BoundsRow, ...]] = {
    "standard": (
        BoundsRow(0, 1.326, 0.570, 2.758, 2.187, 0.340, 2.507, 2.167),
        BoundsRow(6, 0.327, 0.570, 1.173, 0.603, 0.340, 21.238, 20.898),
        BoundsRow(12, 0.252, 0.570, 1.186, 0.616, 0.340, 28.063, 27.723),
        BoundsRow(18, 0.228, 0.570, 1.274, 0.704, 0.340, 34.451, 34.112),
        BoundsRow(24, 0.072, 0.570, 1.549, 0.979, 0.340, 58.629, 58.289),
        BoundsRow(30, 0.006, 0.570, 2.128, 1.558, 0.340, 90.931, 90.591),
        BoundsRow(36, 0.004, 0.570, 2.409, 1.839, 0.340, 103.758, 103.418),
        BoundsRow(42, 0.002, 0.570, 2.189, 1.618, 0.340, 93.293, 92.953),
        BoundsRow(48, 0.001, 0.570, 2.253, 1.682, 0.340, 96.334, 95.994),
        BoundsRow(54, 0.002, 0.570, 2.232, 1.662, 0.340, 94.822, 94.483),
    ),
    "homogeneous": (
        BoundsRow(0, 1.188, 0.245, 2.470, 2.225, 0.087, 2.246, 2.159),
        BoundsRow(6, 0.003, 0.245, 0.421, 0.176, 0.087, 13.275, 13.188),
        BoundsRow(12, 0.001, 0.245, 0.537, 0.292, 0.087, 18.518, 18.431),
        BoundsRow(18, 0.001, 0.245, 0.574, 0.330, 0.087, 20.260, 20.173),
        BoundsRow(24, 0.005, 0.245, 0.728, 0.483, 0.087, 25.312, 25.225),
        BoundsRow(30, 0.001, 0.245, 0.761, 0.516, 0.087, 28.229, 28.142),
        BoundsRow(36, 0.001, 0.245, 0.813, 0.568, 0.087, 30.843, 30.756),
        BoundsRow(42, 0.001, 0.245, 0.801, 0.556, 0.087, 30.287, 30.200),
        BoundsRow(48, 0.004, 0.245, 0.925, 0.680, 0.087, 34.440, 34.353),
        BoundsRow(54, 0.001, 0.245, 0.942, 0.697, 0.087, 36.772, 36.685),
    ),
}
"""Table 2 (standard) and Table 3 (homogeneous)."""
