"""Data sets, transforms and the loader that makes batches of them."""

from .datasets import Dataset as Dataset
from .datasets import Digits as Digits
from .datasets import FolderDataset as FolderDataset
from .datasets import ImageFiles as ImageFiles
from .datasets import Subset as Subset
from .erasing import RandomErasing as RandomErasing
from .images import DecodedImage as DecodedImage
from .images import ImageError as ImageError
from .images import read_image as read_image
from .index import find_images as find_images
from .loader import DataIterator as DataIterator
from .loader import evaluation_batches as evaluation_batches
from .loader import usable_cores as usable_cores
from .loader import worker_count as worker_count
from .named import open_named as open_named
from .policies import parse_policy as parse_policy
from .splits import hold_out as hold_out
from .splits import open_datasets as open_datasets
from .splits import open_validation_set as open_validation_set
from .splits import read_class_map as read_class_map
from .transforms import EvaluationTransform as EvaluationTransform
from .transforms import TrainTransform as TrainTransform
from .transforms import Transform as Transform
from .transforms import build_evaluation_transform as build_evaluation_transform
from .transforms import build_preprocessing as build_preprocessing
from .transforms import build_train_transform as build_train_transform
