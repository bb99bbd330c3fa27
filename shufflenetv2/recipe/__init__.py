"""The published recipe, and the newer ones: what is optimised, and how."""

from .averaging import AveragedWeights as AveragedWeights
from .averaging import linear_decay as linear_decay
from .averaging import parameter_groups as parameter_groups
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
from .schedules import PlateauSchedule as PlateauSchedule
from .schedules import Schedule as Schedule
from .schedules import ScheduleOptions as ScheduleOptions
from .schedules import build_schedule as build_schedule
