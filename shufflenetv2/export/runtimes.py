"""Run exported files with the runtime of their format, on the CPU."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..config import EXPORT_SUFFIXES
from ..errors import UserError, one_line
from ..weights import describe_unreadable
from .metadata import KEYS, ExportMetadata, require_seal
from .packages import MissingPackageError, import_optional, silenced

Forward = Callable[[Tensor], Tensor]  # images in the input format of the file -> logits


@dataclass(frozen=True)
class Program:
    """An exported file, as a function of images.

    Attributes:
        metadata: classes, preprocessing and input format of the file.
        forward: takes images in the input format of the file.
        name: name of the file, for error messages.

    Shape:
        images (N, C, H, W), uint8, BGR or grey -> logits (N, n_class), float32, on the CPU
    """

    metadata: ExportMetadata
    forward: Forward
    name: str

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        try:
            logits = torch.cat([self.forward(batch) for batch in self.metadata.input_batches(images)]).float()
        except Exception as error:  # the errors of the four runtimes have no common class
            raise UserError(f"{self.name} cannot be executed: {one_line(error)}", status=1) from error
        names = self.metadata.class_names
        if logits.ndim != 2 or len(logits) != len(images) or (names is not None and logits.shape[1] != len(names)):
            classes = f"{len(names)} classes" if names is not None else "its classes"
            shape = tuple(logits.shape)
            raise UserError(f"{self.name} gives logits of shape {shape} for {len(images)} images and {classes}", status=1)
        return logits


def open_program(format: str, content: bytes, name: str) -> Program:
    """Open the content of a file that `export` wrote.

    TorchScript and torch's exported programs are code: open only files that you would execute.

    Args:
        format: 'onnx', 'torchscript', 'exported' or 'executorch'.
        name: name of the file, for error messages.

    Raises:
        UserError: if the file is damaged, has another format, was not written by `export`, or needs a package that is not
            installed.
    """
    try:
        with silenced():
            forward, strings = READERS[format](content)
    except MissingPackageError:
        raise
    except Exception as error:  # the errors of the four runtimes have no common class
        raise _damaged(name, format, error) from error
    return Program(ExportMetadata.from_strings(strings, name), forward, name)


def describe_exported(path: Path, format: str) -> dict[str, Any]:
    """Describe an exported file by its metadata. TorchScript and torch's exported programs are code, which is not executed.

    Args:
        format: 'onnx', 'torchscript', 'exported' or 'executorch'.

    Returns:
        A dict of plain values: path, bytes, format, version (of this program that wrote the file), model_size, class_names (or
        None), input and geometry (texts), interpolation, and `preprocessing` as in the file.

    Raises:
        UserError: see `open_program`.
    """
    try:
        content = files.read_regular_file(path, files.MAX_TENSOR_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {describe_unreadable(path, error)}") from error
    try:
        with silenced():
            strings = READERS[format](content)[1] if format in ("onnx", "executorch") else _read_extra_files(content)
    except MissingPackageError:
        raise
    except Exception as error:  # of zip archives, and of the runtimes
        raise _damaged(str(path), format, error) from error
    metadata = ExportMetadata.from_strings(strings, str(path))
    return {
        "path": str(path),
        "bytes": len(content),
        "format": format,
        "version": strings.get("shufflenetv2", "").strip('"'),
        "model_size": metadata.model_size,
        "class_names": metadata.class_names,
        "input": str(metadata),
        "geometry": metadata.preprocessing.describe_geometry(),
        "interpolation": metadata.preprocessing.interpolation,
        "preprocessing": json.loads(strings["preprocessing"]),
    }


def _damaged(name: str, format: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{name} is damaged, or not a file of the format {format}: {reason}", status=1)


def _read_extra_files(content: bytes) -> dict[str, str]:
    """Read the metadata in TorchScript or a torch's exported program, which is a zip archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name.partition("/extra/")[2]: name for name in archive.namelist()}
        return {key: archive.open(members[key]).read(files.MAX_TEXT_BYTES).decode() for key in KEYS if key in members}


def identify_format(path: Path) -> str | None:
    """Return the format of an exported file, or None if the file is not an exported one. Nothing in the file is executed.

    Raises:
        UserError: if the file is a TorchScript or torch.export program without the suffix of that format. Such a file is only
            executed if its suffix shows that it is a program.
    """
    if path.suffix in (EXPORT_SUFFIXES["onnx"], EXPORT_SUFFIXES["executorch"]):
        return "onnx" if path.suffix == EXPORT_SUFFIXES["onnx"] else "executorch"
    members = {name.partition("/")[2] for name in files.zip_members(path)}
    if not members:
        return "exported" if path.suffix == EXPORT_SUFFIXES["exported"] else None
    if "archive_format" in members:
        format, kind = "exported", "a program of torch.export"
    elif "constants.pkl" in members:
        format, kind = "torchscript", "a TorchScript program"
    else:
        return None
    if path.suffix != EXPORT_SUFFIXES[format]:
        raise UserError(
            f"{path} is {kind}, which is code and not weights; rename the file to *{EXPORT_SUFFIXES[format]} to execute it"
        )
    return format


def _read_onnx(content: bytes) -> tuple[Forward, Mapping[str, str]]:
    (runtime,) = import_optional("an ONNX file", "onnxruntime")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3  # errors only
    session = runtime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    (name,) = (images.name for images in session.get_inputs())

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return forward, session.get_modelmeta().custom_metadata_map


def _read_torchscript(content: bytes) -> tuple[Forward, Mapping[str, str]]:
    extra = dict.fromkeys(KEYS, "")
    module = torch.jit.load(io.BytesIO(content), map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
    return module, {key: text.decode() if isinstance(text, bytes) else text for key, text in extra.items()}


def _read_exported(content: bytes) -> tuple[Forward, Mapping[str, str]]:
    extra: dict[str, Any] = dict.fromkeys(KEYS, "")
    return torch.export.load(io.BytesIO(content), extra_files=extra).module(), extra


def _read_executorch(content: bytes) -> tuple[Forward, Mapping[str, str]]:
    (runtime,) = import_optional("an ExecuTorch file", "executorch.runtime")
    require_seal(content)  # the runtime can crash on a damaged file
    program = runtime.Runtime.get().load_program(content)
    method = program.load_method("forward")
    strings = {key: program.load_method(key).execute([])[0] for key in KEYS if key in program.method_names}

    def forward(images: Tensor, owners: object = (content, program)) -> Tensor:
        # `owners`: the method reads the memory of both, but does not keep them alive.
        logits: Tensor = method.execute([images])[0].clone()
        return logits

    return forward, strings


READERS: dict[str, Callable[[bytes], tuple[Forward, Mapping[str, str]]]] = {
    "onnx": _read_onnx,
    "torchscript": _read_torchscript,
    "exported": _read_exported,
    "executorch": _read_executorch,
}
