"""Trains and evaluates ShuffleNetV2; see README.md, or `python train.py --help`."""

import sys

from shufflenetv2.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
