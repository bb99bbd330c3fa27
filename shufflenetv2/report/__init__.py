"""Reports of a run: the log, metrics in files for programs, and figures."""

from .classes import ClassCounts as ClassCounts
from .figures import write_confusion as write_confusion
from .figures import write_grid as write_grid
from .figures import write_per_class as write_per_class
from .log import RunLog as RunLog
from .log import TrainMetrics as TrainMetrics
from .log import ValidationMetrics as ValidationMetrics
from .records import Records as Records
