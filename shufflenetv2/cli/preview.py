"""The command `shufflenetv2 preview`: draw what a training feeds to the network, and its learning rate, without training."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from .. import terminal
from ..config import GROUPS, Config, PreviewConfig, validate
from .command import TrainingParser, resolve, run_command

DESCRIPTION = "Draw the augmented images and the learning rate of a training. The other options are those of the training."
EXAMPLES = """examples:
  the built-in digits:      {prog} --config configs/digits.yaml
  your own images:          {prog} --train-dir DIR --val-dir DIR --mixup 0.2 --aa rand-m9
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 preview") -> int:
    """Draw the figures, and print what they are.

    Returns:
        The exit status: 0 done; 1 failed; 2 wrong usage.
    """
    parser = TrainingParser(
        prog,
        PreviewConfig,
        *GROUPS.values(),
        description=DESCRIPTION,
        examples=EXAMPLES,
        usage="[--out DIR] [--batches N] [option of the training ...] [DIR]",
    )

    def run() -> None:
        given = parser.parse(argv)
        names = {field.name for field in fields(PreviewConfig)}
        options = validate(PreviewConfig, {name: value for name, value in given.items() if name in names})
        config = resolve({name: value for name, value in given.items() if name not in names}, parser)
        draw(config, options)

    return run_command(parser, run)


def draw(config: Config, options: PreviewConfig) -> None:
    """Draw batches, validation images and the learning rate into a folder, and print a line about each file."""
    from ..engine import choose_devices, preview  # imported here because torch takes seconds to import
    from . import build

    train_set, val_set = build.open_datasets(config)
    device = config.common.device if config.optimization.batch_size is None else "cpu"
    config, _ = build.choose_batch_size(config, choose_devices(device, config.execution), train_set, None)
    config, folder = config.with_length(len(train_set)), Path(options.out)
    for line in preview.draw_batches(folder, config, train_set, options.batches):
        terminal.write_result(line)
    if val_set is not None:
        terminal.write_result(preview.draw_validation(folder, config, val_set))
    terminal.write_result(preview.draw_schedule(folder, config, len(train_set)))
