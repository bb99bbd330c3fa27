"""Reports of a run: the log, metrics in files for programs, and figures."""

from .figures import write_confusion as write_confusion
from .figures import write_grid as write_grid
from .log import RunLog as RunLog
from .log import TrainMetrics as TrainMetrics
from .records import Records as Records
