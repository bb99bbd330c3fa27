"""Training, evaluation, and what survives an interruption."""

from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .training import TrainingState as TrainingState
from .training import recalibrate_batch_norm as recalibrate_batch_norm
from .training import train as train
from .training import train_step as train_step
