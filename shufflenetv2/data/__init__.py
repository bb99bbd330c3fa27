"""Data sets, transforms, and the loader that joins them."""

from .datasets import Dataset as Dataset
from .datasets import DatasetError as DatasetError
from .datasets import Digits as Digits
from .datasets import FolderDataset as FolderDataset
from .images import DecodedImage as DecodedImage
from .images import ImageError as ImageError
from .iterator import DataIterator as DataIterator
from .iterator import evaluation_batches as evaluation_batches
from .iterator import generator as generator
from .iterator import usable_cores as usable_cores
from .transforms import EvaluationTransform as EvaluationTransform
from .transforms import TrainTransform as TrainTransform
