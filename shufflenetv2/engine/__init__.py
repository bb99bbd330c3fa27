"""Training, evaluation, and what survives an interruption."""

from .devices import Devices as Devices
from .devices import Execution as Execution
from .devices import choose_devices as choose_devices
from .evaluation import EvaluationResult as EvaluationResult
from .evaluation import evaluate as evaluate
from .hooks import Hook as Hook
from .hooks import load_hook as load_hook
from .loop import NonFiniteLossError as NonFiniteLossError
from .loop import TrainingState as TrainingState
from .loop import every as every
from .loop import recalibrate_batch_norm as recalibrate_batch_norm
from .loop import train as train
from .loop import train_step as train_step
from .signals import GracefulShutdown as GracefulShutdown
from .signals import ShutdownRequested as ShutdownRequested
