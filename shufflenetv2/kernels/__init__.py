"""Compiled replacements for plain PyTorch and OpenCV code. Optional: without this folder the results are the same, slower.

`accelerate(network)` makes a network's training step faster. `pixels` decodes and transforms images; `shufflenetv2.data` uses
it. The library files are compiled by setup.py.
"""

from . import pixels as pixels
