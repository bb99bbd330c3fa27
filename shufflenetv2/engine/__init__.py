"""Training and evaluation of a network, with checkpoints that survive an interruption."""

from .bad_images import BadImageReport as BadImageReport
from .checkpoint import Checkpointer as Checkpointer
from .checkpoint import RunIdentity as RunIdentity
from .devices import Devices as Devices
from .devices import choose_devices as choose_devices
from .evaluation import EvaluationResult as EvaluationResult
from .evaluation import Evaluator as Evaluator
from .evaluation import count_correct as count_correct
from .evaluation import evaluate as evaluate
from .figures import grad_cam as grad_cam
from .figures import try_figures as try_figures
from .hooks import Hook as Hook
from .hooks import load_hook as load_hook
from .loop import Callbacks as Callbacks
from .loop import StepSettings as StepSettings
from .loop import recalibrate_batch_norm as recalibrate_batch_norm
from .loop import train as train
from .loop import train_step as train_step
from .memory import MemoryEstimate as MemoryEstimate
from .memory import estimate_memory as estimate_memory
from .nonfinite import NonFiniteLossError as NonFiniteLossError
from .signals import GracefulShutdown as GracefulShutdown
from .signals import ShutdownRequested as ShutdownRequested
from .state import TrainingState as TrainingState
from .state import build_training_state as build_training_state
from .trainer import Trainer as Trainer
