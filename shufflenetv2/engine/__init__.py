"""Training, evaluation, and what survives an interruption."""

from .devices import Devices as Devices
from .devices import Execution as Execution
from .devices import choose_devices as choose_devices
from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .hooks import Hook as Hook
from .hooks import load_hook as load_hook
from .preemption import Preempted as Preempted
from .preemption import Preemption as Preemption
from .training import NonFiniteLossError as NonFiniteLossError
from .training import TrainingState as TrainingState
from .training import every as every
from .training import recalibrate_batch_norm as recalibrate_batch_norm
from .training import train as train
from .training import train_step as train_step
