"""Weight files: what is in one, whoever wrote it, and the network it belongs to."""

from .file import Preprocessing as Preprocessing
from .file import Weights as Weights
from .file import WeightsError as WeightsError
from .file import misfit as misfit
from .file import model_record as model_record
from .file import read_weights as read_weights
