"""The published recipe: what is optimised, and how fast."""

from .optimization import AveragedWeights as AveragedWeights
from .optimization import linear_decay as linear_decay
from .optimization import parameter_groups as parameter_groups
