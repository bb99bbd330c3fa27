"""Whether what lies in a folder is of the run that is about to go on there."""

import hashlib
from pathlib import Path
from typing import Any

from .. import files
from ..config import DEFAULTS, Config
from ..data import Dataset
from ..errors import UserError
from ..network import published_name
from . import checkpoint


def is_finished(options: Config, train_set: Dataset, result: Path) -> bool:
    """Whether the result of this very run is there already."""
    if not result.exists():
        return False
    try:
        content = files.read(result, require_checksum=True)
    except files.DamagedFileError as error:
        checkpoint.logger.warning("%s; it will be made anew", error)
        return False
    require_same_run(options, train_set, content, result)
    if content.get("samples") != fingerprint(train_set):
        raise UserError(
            f"{result} was trained on other images than there are now; give this run a --save folder of its own, "
            "or start over with --no-auto-continue"
        )
    return True


def fingerprint(dataset: Dataset) -> str:
    """A digest of the names of the samples and of their classes, which decide the order of training."""
    digest = hashlib.sha256(dataset.targets.tobytes())
    names = "".join([dataset.name(index) + "\0" for index in range(len(dataset))])
    digest.update(names.encode(errors="surrogateescape"))
    return digest.hexdigest()


def require_same_run(
    options: Config, train_set: Dataset, content: dict[str, Any], path: Path,
    remedy: str = "Give this one a --save folder of its own, or start over with --no-auto-continue",
) -> None:  # fmt: skip
    """Refuses to continue a run that was started with another recipe or other classes."""
    # An option that did not exist then had the effect of its default.
    then, now = DEFAULTS | content.get("options", {}), options.recipe()
    then["freeze"], now["freeze"] = (tuple(map(published_name, names)) for names in (then["freeze"], now["freeze"]))
    differing = [
        f"`{name}` was {_shown(then[name])} and is {_shown(value)}" for name, value in now.items() if then[name] != value
    ]
    if content.get("class_names") != train_set.class_names:
        differing.append("the classes are others")
    if differing:
        raise UserError(f"{path} is of another run: {'; '.join(differing)}. {remedy}")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
