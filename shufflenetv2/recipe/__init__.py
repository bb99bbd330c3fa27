"""What is optimised and how: losses, targets, optimizers, learning rates, averaged weights, weights to start from."""

from .averaging import AveragedWeights as AveragedWeights
from .averaging import build_averaging as build_averaging
from .finetuning import freeze as freeze
from .finetuning import read_initial_weights as read_initial_weights
from .finetuning import start_from as start_from
from .losses import DistillationLoss as DistillationLoss
from .losses import LossFunction as LossFunction
from .losses import build_loss as build_loss
from .losses import distillation_loss as distillation_loss
from .mixing import Mixing as Mixing
from .mixing import build_mixing as build_mixing
from .optimizers import build_clipping as build_clipping
from .optimizers import build_optimizer as build_optimizer
from .optimizers import clip_gradients as clip_gradients
from .optimizers import create_optimizer as create_optimizer
from .optimizers import fine_tuning_groups as fine_tuning_groups
from .optimizers import parameter_groups as parameter_groups
from .schedules import PlateauSchedule as PlateauSchedule
from .schedules import Schedule as Schedule
from .schedules import build_schedule as build_schedule
from .schedules import fast_forward as fast_forward
from .schedules import learning_rate as learning_rate
from .schedules import linear_decay as linear_decay
from .teachers import Teacher as Teacher
from .teachers import load_teacher as load_teacher
