"""Compiled replacements for plain PyTorch and OpenCV code. Optional: without this folder the results are the same, slower.

`training.accelerate(network)` makes a network's training step faster; `shufflenetv2.engine` calls it. `pixels` decodes and
transforms images; `shufflenetv2.data` calls it. setup.py compiles the C files.
"""
