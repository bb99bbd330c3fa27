"""What a run tells: on the terminal, in its log, in files for programs, and in pictures."""

from .figures import write_confusion as write_confusion
from .figures import write_grid as write_grid
from .log import RunLog as RunLog
