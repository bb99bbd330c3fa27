"""Data sets, transforms, and the loader that joins them."""

from .datasets import Dataset as Dataset
from .datasets import DatasetError as DatasetError
from .datasets import Digits as Digits
from .datasets import FolderDataset as FolderDataset
from .erasing import RandomErasing as RandomErasing
from .images import DecodedImage as DecodedImage
from .images import ImageError as ImageError
from .loader import DataIterator as DataIterator
from .loader import evaluation_batches as evaluation_batches
from .loader import usable_cores as usable_cores
from .named import hold_out as hold_out
from .named import open_named as open_named
from .named import read_class_map as read_class_map
from .policies import parse_policy as parse_policy
from .transforms import EvaluationTransform as EvaluationTransform
from .transforms import TrainTransform as TrainTransform
from .transforms import Transform as Transform
