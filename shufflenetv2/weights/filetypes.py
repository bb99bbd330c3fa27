"""Recognize files that are not weight files, and find weight files that may be meant instead, for error messages."""

import codecs
import os
import re
from pathlib import Path

from .. import files

# (first bytes of a file, their offset, what the file is)
SIGNATURES = (
    (b"\xff\xd8\xff", 0, "a JPEG image"),
    (b"\x89PNG", 0, "a PNG image"),
    (b"GIF8", 0, "a GIF image"),
    (b"WEBP", 8, "a WebP image"),
    (b"\x89HDF", 0, "an HDF5 file"),
    (b"TFL3", 4, "a TensorFlow Lite model"),
    (b"ET12", 4, "an ExecuTorch program"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"version https://git-lfs", 0, "a Git LFS pointer; `git lfs pull` fetches the file itself"),
)
# (end of the name of a file in a zip archive, what the archive is)
ZIP_MEMBERS = (
    ("/constants.pkl", "a TorchScript program"),
    ("archive_format", "a program of torch.export"),
    (".npy", "NumPy arrays"),
)
# An ONNX file is a protobuf message. It begins with field 1, the version of the format (1 to 31), then field 2 (producer name),
# 3 (producer version), 7 (graph) or 8 (operator sets).
ONNX = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x3a\x42]")
BEST, RESULT, RESULT_EMA = "best.pkl", "model.pkl", "model-ema.pkl"  # the results of a run
WEIGHT_SUFFIXES = (".pkl", ".pth", ".pth.tar", ".pt", ".safetensors")


def weight_files(folder: Path) -> list[Path]:
    """Return the files with names of weight files in a folder: the results of a run, then the others, newest first.

    If there are none, the folder may hold folders of runs: return the best weights of each run, newest first.
    """
    try:
        names = {name for name in os.listdir(folder) if name.endswith(WEIGHT_SUFFIXES) and not name.startswith(".")}
        results = [folder / name for name in (BEST, RESULT, RESULT_EMA) if name in names]
        others = {folder / name for name in names}.difference(results) or set(folder.glob(f"*/{BEST}") if not results else ())
        return [*results, *sorted(others, key=os.path.getmtime, reverse=True)]
    except OSError:
        return []


def describe_unreadable(path: Path, error: OSError) -> str:
    """Return why a weight file cannot be read, with those that may be meant: in the folder, or of similar name."""
    if path.is_dir():
        proposals = weight_files(path)
        if not proposals:
            return "it is a folder, and holds no weight files"
        return f"it is a folder; did you mean {' or '.join(map(str, proposals[:2]))}?"
    near = files.nearest_path(path)
    if path.exists() or not near:
        return f"{error.strerror}"
    return f"{error.strerror}; did you mean {[*weight_files(Path(near)), near][0]}?"


def identify(path: Path) -> str | None:
    """Return what a file is that is not a weight file, for example 'a JPEG image'; None if it is not recognized."""
    with open(path, "rb", opener=files.open_regular) as file:
        head = file.read(512)
    for signature, offset, kind in SIGNATURES:
        if head[offset:].startswith(signature):
            return kind
    if ONNX.match(head):
        return "an ONNX model"
    if members := files.zip_members(path):
        return next((kind for ending, kind in ZIP_MEMBERS if any(name.endswith(ending) for name in members)), None)
    if head.startswith(b"PK"):
        return "a zip archive whose end is missing, or which is damaged"
    if _is_text(head):
        return "a web page" if head.lstrip().startswith(b"<") else "text"
    return None


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins like a .safetensors file: with a length that is less than the file's, then a JSON object."""
    with open(path, "rb", opener=files.open_regular) as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _is_text(head: bytes) -> bool:
    try:
        # An incremental decoder accepts a multi-byte character that is cut off at the end of `head`.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(character.isprintable() or character.isspace() for character in text)
