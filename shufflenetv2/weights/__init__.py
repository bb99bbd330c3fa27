"""Weight files of this trainer and of other projects: reading, writing, converting and describing them."""

from .conversion import from_mmpretrain as from_mmpretrain
from .conversion import from_torchvision as from_torchvision
from .conversion import rgb_normalization as rgb_normalization
from .conversion import to_mmpretrain as to_mmpretrain
from .conversion import to_original as to_original
from .conversion import to_torchvision as to_torchvision
from .description import describe as describe
from .file import Preprocessing as Preprocessing
from .file import Weights as Weights
from .file import describe_mismatch as describe_mismatch
from .file import model_record as model_record
from .names import recognize_names as recognize_names
from .permutations import permutations as permutations
from .pretrained import pretrained_weights as pretrained_weights
from .reading import load_model as load_model
from .reading import read_weights as read_weights
from .schema import ImageSize as ImageSize
from .schema import Iteration as Iteration
from .schema import Metadata as Metadata
from .schema import check_metadata as check_metadata
from .schema import check_tensors as check_tensors
from .schema import check_values as check_values
from .schema import plain_items as plain_items
from .writing import convert as convert
from .writing import input_description as input_description
