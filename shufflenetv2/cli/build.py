"""Open what several commands need, with one process of a machine first where files may be downloaded."""

from contextlib import nullcontext

from ..config import Config
from ..data import Dataset, open_datasets, open_validation_set
from ..engine import distributed
from ..recipe import read_initial_weights
from ..weights import Preprocessing, Weights


def data_sets(config: Config) -> tuple[Dataset, Dataset | None]:
    """Open the training set and, if the run validates and there is one, the validation set."""
    with distributed.local_rank0_first() if config.data.dataset_download else nullcontext():
        train_set, val_set = open_datasets(config.data, config.optimization.seed)
    return train_set, val_set if config.run.validate else None


def validation_set(config: Config, class_names: list[str] | None) -> Dataset:
    """Open the validation set, labelled by the classes of the model."""
    with distributed.local_rank0_first() if config.data.dataset_download else nullcontext():
        return open_validation_set(config.data, config.optimization.seed, class_names)


def initial_weights(config: Config) -> tuple[Config, Weights | None]:
    """Read the weights to start from, if any; return the config with their normalization as its default."""
    with distributed.local_rank0_first() if config.fine_tuning.pretrained else nullcontext():
        weights = read_initial_weights(config.fine_tuning, config.model)
    preprocessing = (weights and weights.preprocessing) or Preprocessing()
    return config.with_normalization(preprocessing.mean, preprocessing.std), weights
