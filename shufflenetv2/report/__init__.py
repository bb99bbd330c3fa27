"""Reports of a run: the log, metrics in files for programs, and figures."""

from .classes import ClassCounts as ClassCounts
from .figures import draw_learning_rate as draw_learning_rate
from .figures import try_figures as try_figures
from .figures import write_batch as write_batch
from .figures import write_figures as write_figures
from .figures import write_grid as write_grid
from .findings import write_findings as write_findings
from .log import RunLog as RunLog
from .log import TrainMetrics as TrainMetrics
from .log import ValidationMetrics as ValidationMetrics
from .page import ReportPage as ReportPage
from .page import write_page as write_page
from .predictions import MAX_PROBABILITIES as MAX_PROBABILITIES
from .predictions import TOP as TOP
from .predictions import Predictions as Predictions
from .predictions import write_predictions as write_predictions
from .predictions import write_summary as write_summary
from .records import Records as Records
from .runfiles import find_log_folder as find_log_folder
from .sessions import Session as Session
from .tables import protect as protect
from .tables import unprotect as unprotect
from .tables import write_confusion as write_confusion
from .tables import write_csv as write_csv
from .tables import write_per_class as write_per_class
