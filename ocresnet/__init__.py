"""Optimal control for residual networks: train with stage costs, cut to the depth needed.

Public names, in the order one uses them:

  load_dataset                     data by name or from a `.npz` file
  ResNetConfig, for_dataset        the architecture of a residual network
  TrainingConfig, fit              train it, with stage costs
  trajectory                       losses and accuracies over depth
  recommend_depth, prune           choose a depth and cut there
  predict                          classify, leaving early where an exit is sure
  save, load                       a network on disk
"""

from ocresnet._version import __version__
from ocresnet.data.dataset import Dataset
from ocresnet.data.sources import load_dataset
from ocresnet.stage_cost.calibration import calibrate_confidence
from ocresnet.stage_cost.early_exit import predict
from ocresnet.stage_cost.exits import calibrate_exits
from ocresnet.stage_cost.pruning import prune, recommend_depth
from ocresnet.stage_cost.trajectory import Trajectory, logits_over_depth, trajectory
from ocresnet.systems.network import Network, create, load, save
from ocresnet.systems.resnet import Execution, ResNetConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.loop import Run, fit, for_dataset

__all__ = [
    "Dataset",
    "Execution",
    "Network",
    "ResNetConfig",
    "Run",
    "TrainingConfig",
    "Trajectory",
    "__version__",
    "calibrate_confidence",
    "calibrate_exits",
    "create",
    "fit",
    "for_dataset",
    "load",
    "load_dataset",
    "logits_over_depth",
    "predict",
    "prune",
    "recommend_depth",
    "save",
    "trajectory",
]
