"""Training the stages before a split on its targets."""

from featprop_sklearn.training.auto import AutoTrainer
from featprop_sklearn.training.closed_form import ClosedFormTrainer
from featprop_sklearn.training.component import Component, Labelled, TrainingResult
from featprop_sklearn.training.gradient import GradientTrainer
from featprop_sklearn.training.post_train import Trainer, post_train
from featprop_sklearn.training.pretraining import pretrain_default_network
from featprop_sklearn.training.standard_units import StandardNetwork, StandardUnits

__all__ = [
    "AutoTrainer",
    "ClosedFormTrainer",
    "Component",
    "GradientTrainer",
    "Labelled",
    "StandardNetwork",
    "StandardUnits",
    "Trainer",
    "TrainingResult",
    "post_train",
    "pretrain_default_network",
]
