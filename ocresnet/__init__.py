"""Optimal control for neural networks: stage costs to find their depth, OCNOpt to train them.

Public names, in the order one uses them:

  load_dataset, Dataset            data by name, from a `.npz` file, or one's own arrays
  ResNetConfig, ResidualMLPConfig, TransformerConfig, NeuralODEConfig, MLPConfig, CNNConfig,
  InceptionConfig                  architectures; `for_dataset` fits one to the data
  System                           one's own functions as a system; `systems.from_flax` has the way
                                   in for Flax modules
  TrainingConfig, fit              train, with stage costs
  SGD, AdamW, RMSprop, KFAC, EKFAC, OCNOpt, SNOpt    with any of these, or any optax
                                   transformation
  trajectory, calibrate_exits      losses and accuracies over depth, also of plain networks
  recommend_depth, prune           choose a depth and cut there
  best_depth_within                or the best depth for so many multiply-adds
  remove_blocks, recalibrate       or remove any blocks, and measure the batch statistics anew
  predict                          classify, leaving early where an exit is sure
  FlowConfig, log_likelihood, sample    a continuous normalizing flow: densities and samples
  GRUODEConfig, Series, TimeSeriesData    a GRU-ODE: irregular series with missing values
  save, load, Network              a network on disk
  export_network, load_exported    one that runs without this package, as StableHLO
  Problem, linearize, Keep, ocnopt, curvature    the Bellman recursion as an optax optimizer, in a
                                   loop of one's own

The modules hold the rest: `ocresnet.systems`, `ocresnet.stage_cost`, `ocresnet.control`,
`ocresnet.training`.
"""

from ocresnet._version import __version__
from ocresnet.continuous.flows import log_likelihood, sample
from ocresnet.control import curvature
from ocresnet.control.linearize import Keep, linearize
from ocresnet.control.optimizer import ocnopt
from ocresnet.data.dataset import Dataset
from ocresnet.data.sources import load_dataset
from ocresnet.data.time_series import Series, TimeSeriesData
from ocresnet.export import export_network, load_exported
from ocresnet.problem import Problem
from ocresnet.stage_cost.early_exit import predict
from ocresnet.stage_cost.exits import calibrate_exits
from ocresnet.stage_cost.pruning import best_depth_within, prune, recommend_depth
from ocresnet.stage_cost.recalibration import recalibrate
from ocresnet.stage_cost.surgery import remove_blocks
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.flow import FlowConfig
from ocresnet.systems.gru_ode import GRUODEConfig
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.network import Network, load, save
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.system import System
from ocresnet.systems.transformer import TransformerConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.continuous_optimizers import SNOpt
from ocresnet.training.control_optimizers import EKFAC, KFAC, OCNOpt
from ocresnet.training.fit import fit, for_dataset
from ocresnet.training.gradient_optimizers import SGD, AdamW, RMSprop

__all__ = [
    "EKFAC",
    "KFAC",
    "SGD",
    "AdamW",
    "CNNConfig",
    "Dataset",
    "FlowConfig",
    "GRUODEConfig",
    "InceptionConfig",
    "Keep",
    "MLPConfig",
    "Network",
    "NeuralODEConfig",
    "OCNOpt",
    "Problem",
    "RMSprop",
    "ResNetConfig",
    "ResidualMLPConfig",
    "SNOpt",
    "Series",
    "System",
    "TimeSeriesData",
    "TrainingConfig",
    "TransformerConfig",
    "__version__",
    "best_depth_within",
    "calibrate_exits",
    "curvature",
    "export_network",
    "fit",
    "for_dataset",
    "linearize",
    "load",
    "load_dataset",
    "load_exported",
    "log_likelihood",
    "ocnopt",
    "predict",
    "prune",
    "recalibrate",
    "recommend_depth",
    "remove_blocks",
    "sample",
    "save",
    "trajectory",
]
