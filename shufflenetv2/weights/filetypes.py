"""Recognize files that are not weight files, such as images, web pages and TorchScript programs, for error messages."""

import codecs
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
