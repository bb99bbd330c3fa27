"""Options: declared once, in typed groups, each of which configures one part of the program."""

from .config import DEFAULTS as DEFAULTS
from .config import GROUPS as GROUPS
from .config import OPTIONS as OPTIONS
from .config import Config as Config
from .config import default_learning_rate as default_learning_rate
from .data import AugmentationConfig as AugmentationConfig
from .data import DataConfig as DataConfig
from .fields import Option as Option
from .fields import group as group
from .fields import option as option
from .fields import options_of as options_of
from .fields import validate as validate
from .recipe import REFERENCE_BATCH_SIZE as REFERENCE_BATCH_SIZE
from .recipe import DistillationConfig as DistillationConfig
from .recipe import FineTuningConfig as FineTuningConfig
from .recipe import ModelConfig as ModelConfig
from .recipe import OptimizationConfig as OptimizationConfig
from .recipe import ScheduleConfig as ScheduleConfig
from .run import CommonConfig as CommonConfig
from .run import EvaluationConfig as EvaluationConfig
from .run import ExecutionConfig as ExecutionConfig
from .run import RunConfig as RunConfig
