"""Compiled replacements for plain PyTorch and OpenCV code. Optional: without them the results are the same, slower."""
