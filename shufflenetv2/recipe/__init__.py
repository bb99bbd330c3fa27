"""What is optimised and how: losses, targets, optimizers, learning rates, averaged weights, weights to start from."""

from .averaging import AveragedWeights as AveragedWeights
from .distillation import DistillationLoss as DistillationLoss
from .distillation import load_teacher as load_teacher
from .finetuning import fine_tuning_groups as fine_tuning_groups
from .finetuning import freeze as freeze
from .finetuning import start_from as start_from
from .losses import LossFunction as LossFunction
from .losses import build_loss as build_loss
from .mixing import Mixing as Mixing
from .optimizers import build_optimizer as build_optimizer
from .optimizers import clip_gradients as clip_gradients
from .optimizers import parameter_groups as parameter_groups
from .schedules import PlateauSchedule as PlateauSchedule
from .schedules import Schedule as Schedule
from .schedules import build_schedule as build_schedule
from .schedules import fast_forward as fast_forward
from .schedules import learning_rate as learning_rate
from .schedules import linear_decay as linear_decay
