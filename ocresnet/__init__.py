"""Optimal control for residual networks: stage costs to find their depth, OCNOpt to train them.

Public names, in the order one uses them:

  load_dataset, Dataset            data by name, from a `.npz` file, or one's own arrays
  ResNetConfig, for_dataset        the architecture of a residual network
  TrainingConfig, fit              train it, with stage costs
  trajectory, calibrate_exits      losses and accuracies over depth, also of plain networks
  recommend_depth, prune           choose a depth and cut there
  remove_blocks, recalibrate       or remove any blocks, and measure the batch statistics anew
  predict                          classify, leaving early where an exit is sure
  save, load, Network              a network on disk
  export_network, load_exported    one that runs without this package, as StableHLO
  ocnopt, curvature                the Bellman recursion as an optax optimizer, for any `System`

The modules hold the rest: `ocresnet.systems`, `ocresnet.stage_cost`, `ocresnet.control`,
`ocresnet.training`.
"""

from ocresnet._version import __version__

__all__ = ["__version__"]
