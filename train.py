"""Trains and evaluates ShuffleNetV2; see README.md, or `python train.py --help`."""

import sys

from shufflenetv2.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], prog="train.py"))
