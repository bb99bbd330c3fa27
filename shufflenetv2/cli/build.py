"""The parts of a run, each built from its options: what an option does begins here, and mostly ends here."""

from contextlib import nullcontext

from ..config import Config
from ..config.declaration import OptionsError
from ..data import (
    Dataset,
    EvaluationTransform,
    FolderDataset,
    RandomErasing,
    TrainTransform,
    Transform,
    hold_out,
    open_named,
    parse_policy,
    read_class_map,
    usable_cores,
)  # fmt: skip
from ..engine import distributed
from ..recipe import read_initial_weights
from ..weights import Preprocessing, Weights


def workers(options: Config) -> int:
    """Threads that load images in this process."""
    return options.workers or max(1, usable_cores() // distributed.local_world_size())


def data_sets(options: Config) -> tuple[Dataset, Dataset | None]:
    """The data to train on, and that to validate on if there is any."""
    train_set: Dataset
    if options.dataset == "folder":
        train_set = FolderDataset(options.train_dir, read_class_map(options.class_map) if options.class_map else None)
    else:
        train_set = _named(options, options.train_split)
    if options.num_classes and options.num_classes != len(train_set.class_names):
        raise OptionsError(
            f"--num-classes {options.num_classes}: the training images have {len(train_set.class_names)} classes"
        )
    val_set: Dataset | None = None
    if options.val_fraction:
        train_set, val_set = hold_out(train_set, options.val_fraction, options.seed)
    elif options.dataset != "folder" or options.val_dir:
        val_set = validation_set(options, train_set.class_names)
    return train_set, val_set if options.validate else None


def validation_set(options: Config, class_names: list[str] | None) -> Dataset:
    """The data to evaluate on, labelled by the classes of the model where those are known."""
    if options.val_fraction:
        return hold_out(data_sets(options.replace(val_fraction=0.0))[0], options.val_fraction, options.seed)[1]
    if options.dataset != "folder":
        return _named(options, options.val_split)
    return FolderDataset(options.val_dir, read_class_map(options.class_map) if options.class_map else class_names)


def _named(options: Config, split: str) -> Dataset:
    # One process of a machine fetches what the others then find.
    with distributed.local_rank0_first() if options.dataset_download else nullcontext():
        return open_named(options.dataset, split, options.data_dir, download=options.dataset_download)


def preprocessing(options: Config) -> Preprocessing:
    return Preprocessing(options.input_size, options.resize_size, options.mean, options.std, options.interpolation)


def evaluation_transform(use: Preprocessing, views: int = 1) -> EvaluationTransform:
    return EvaluationTransform(use.input_size, use.resize_size, use.interpolation, views)


def train_transform(options: Config) -> Transform:
    """What becomes of a training image."""
    if options.no_aug:
        return evaluation_transform(preprocessing(options))
    # Where the network's input is not normalised, images are filled with the colours of ImageNet.
    colours = {} if options.std == (1.0, 1.0, 1.0) else {"mean": options.mean, "std": options.std}
    erasing = RandomErasing(options.reprob, options.remode, options.recount, **colours) if options.reprob else None
    fill = {"fill": options.mean} if colours else {}
    return TrainTransform(
        options.train_crop_size or options.input_size,
        options.scale,
        options.ratio,
        options.color_jitter,
        options.hflip,
        vflip=options.vflip,
        policy=parse_policy(options.aa, **fill) if options.aa else None,
        grayscale=options.grayscale_prob,
        blur=options.gaussian_blur_prob,
        erasing=erasing,
        interpolation=options.train_interpolation,
        views=options.aug_splits or 1,
        erases_first=not options.resplit,
    )


def initial_weights(options: Config) -> tuple[Config, Weights | None]:
    """The weights to start from, if there are any; and the options, normalising the input as those are used to."""
    with distributed.local_rank0_first() if options.pretrained else nullcontext():  # which downloads them
        weights = read_initial_weights(options.fine_tuning, options.model)
    own = (weights and weights.preprocessing) or Preprocessing()
    return options.with_normalization(own.mean, own.std), weights
