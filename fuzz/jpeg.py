"""Fuzz the JPEG decoder against OpenCV: libFuzzer mutates JPEG files, guided by the coverage of the C code.

An input is a JPEG file, with five bytes after its end that select the scale and the crop. For each input:

- what `jpeg_decode` accepts of a file with an end marker has OpenCV's pixels, to the last bit;
- what `jpeg_verify` calls intact is decoded by OpenCV without a warning of libjpeg, or is not decoded at all;
- AddressSanitizer and UBSan find nothing.

The corpus is kept in build/fuzz/corpus, and inputs that break a rule in build/fuzz/failures. Run it with `make fuzz`, or
`bash fuzz/run SECONDS`.
"""

import argparse
import ctypes
import io
import json
import os
import platform
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from shufflenetv2.data.headers import jpeg_frame
from shufflenetv2.data.images import REDUCED, decode_with_opencv
from shufflenetv2.kernels import pixels
from shufflenetv2.kernels.bindings import load_library

BUILD = Path(__file__).parent.parent / "build/fuzz"
MAX_PIXELS = 200_000  # larger images only take time
MAX_BYTES = 4096
PARAMETERS = 5  # number of bytes after the file
HARMLESS = (
    "extraneous bytes",
    "JFIF revision",
    "Invalid SOS parameters",
    "Adobe color transform",
)  # warnings about files whose pixels are right
TOKENS = [b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xc0", b"\xff\xc1", b"\xff\xc2", b"\xff\xc4", b"\xff\xdb", b"\xff\xdd"]
TOKENS += [bytes([0xFF, 0xD0 + n]) for n in range(8)] + [b"\xff\x00", b"\xff\xff", b"\xff\xe0", b"\xff\xee", b"Adobe\0"]


def seeds() -> Iterator[bytes]:
    """Yield JPEG files of all subsamplings, restart intervals and kinds, followed by scales and crops."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    files = []
    for width, height in ((61, 47), (40, 32), (9, 17)):
        image = PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)
        noisy = np.clip(np.asarray(image) + rng.integers(-12, 13, (height, width, 3)), 0, 255).astype(np.uint8)
        for mode, options in (
            *(("RGB", {"subsampling": sampling, "quality": 80}) for sampling in (0, 1, 2)),
            *(("RGB", {"restart_marker_blocks": interval}) for interval in (1, 3)),
            ("RGB", {"restart_marker_rows": 1, "quality": 97}),
            ("RGB", {"progressive": True}),
            ("RGB", {"quality": 10, "optimize": True}),
            ("L", {}),
            ("L", {"progressive": True, "restart_marker_blocks": 2}),
            ("CMYK", {}),
        ):
            buffer = io.BytesIO()
            PIL.Image.fromarray(noisy).convert(mode).save(buffer, "JPEG", **options)
            files.append(buffer.getvalue())
        for factors in (0x411111, 0x121111):
            files.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors])[1].tobytes())
    for number, file in enumerate(files):
        for scale in range(4):
            yield file + bytes([scale, *(rng.integers(0, 256, 4, dtype=np.uint8) if number % 2 else (0, 0, 255, 255))])


class Warnings:
    """Captures what libjpeg prints to the standard error of this process."""

    def __init__(self) -> None:
        self.terminal = os.fdopen(os.dup(2), "w", buffering=1)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)

    def capture(self, encoded: bytes, flag: int) -> tuple[np.ndarray | None, list[str]]:
        """Decode a file with OpenCV; return its pixels, and the warnings that are not harmless."""
        os.dup2(self._file.fileno(), 2)
        try:
            result = decode_with_opencv(encoded, flag)
        finally:
            os.dup2(self.terminal.fileno(), 2)
        if not self._file.seek(0, os.SEEK_END):
            return result, []
        self._file.seek(0)
        lines = self._file.read().decode(errors="replace").splitlines()
        self._file.seek(0)
        self._file.truncate()
        return result, [line for line in lines if line and not any(text in line for text in HARMLESS)]


class Target:
    """Checks one input after the other, and ends the process after a number of seconds."""

    def __init__(self, seconds: float, results: Path | None) -> None:
        self.counts: Counter[str] = Counter()
        self.warnings = Warnings()
        self._results, self._start, self._seconds = results, time.monotonic(), seconds

    def __call__(self, address: int, size: int) -> int:
        data = ctypes.string_at(address, size)
        try:
            self.check(data)
        except Exception:
            traceback.print_exc(file=self.warnings.terminal)
            self._keep(data, "error")
        if time.monotonic() - self._start > self._seconds:
            self.end()
        return 0

    def check(self, data: bytes) -> None:
        self.counts["inputs"] += 1
        encoded, parameters = data[:-PARAMETERS], data[-PARAMETERS:]
        frame = jpeg_frame(encoded) if encoded.startswith(b"\xff\xd8") else None
        if frame is None or not 0 < frame.height * frame.width <= MAX_PIXELS:
            self.counts["without a frame header, or large"] += 1
            return
        scale = 1 << parameters[0] % 4
        height, width = -(-frame.height // scale), -(-frame.width // scale)
        top, left = parameters[1] * height // 256, parameters[2] * width // 256
        box = top, left, 1 + parameters[3] * (height - top - 1) // 255, 1 + parameters[4] * (width - left - 1) // 255
        part = pixels.decode_jpeg(encoded, scale, box)
        is_intact = pixels.is_intact_jpeg(encoded, frame.height, frame.width)
        reference, warnings = self.warnings.capture(encoded, REDUCED[scale])
        self.counts[{True: "intact", False: "damaged", None: "of an unknown kind"}[is_intact]] += 1
        self.counts["warned of by libjpeg"] += bool(warnings)
        if part is not None and frame.has_end:  # the program decodes no other file
            self.counts["accepted by the decoder"] += 1
            expected = None if reference is None else reference[top : top + box[2], left : left + box[3]]
            if expected is None and is_intact is not False:  # otherwise the damage may lie below the crop
                self._keep(data, "refused")
            if expected is not None and not np.array_equal(part, expected):
                self._keep(data, "pixels")
        if is_intact and warnings:
            self._keep(data, "warning")

    def end(self) -> None:
        """Print and save the counts, and end the process; libFuzzer would end it without Python's clean-up, too."""
        failures = sum(number for name, number in self.counts.items() if name.startswith("failures"))
        result = {
            "seconds": round(time.monotonic() - self._start),
            "failures": failures,
            "counts": dict(self.counts),
            "versions": {"opencv": cv2.__version__, "python": platform.python_version()},
        }
        print(json.dumps(result, indent=1), flush=True)
        if self._results:
            self._results.write_text(json.dumps(result, indent=1) + "\n")
        os._exit(1 if failures else 0)

    def _keep(self, data: bytes, kind: str) -> None:
        self.counts[f"failures ({kind})"] += 1
        folder = BUILD / "failures"
        folder.mkdir(exist_ok=True)
        path = folder / f"{kind}-{zlib.crc32(data):08x}.jpg"
        if self.counts[f"failures ({kind})"] <= 20:
            path.write_bytes(data)
            print(f"fuzz: {kind}: {path}", file=self.warnings.terminal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of libFuzzer; 0: another one each time")
    parser.add_argument("--results", type=Path, help="JSON file to write the counts to")
    parser.add_argument("inputs", nargs="*", type=Path, help="check these inputs only")
    arguments = parser.parse_args()
    functions = load_library(BUILD / "_pixels", pixels.HEADER, "run fuzz/build")
    if functions is None:
        sys.exit("fuzz: run fuzz/build first; the processor must have AVX2")
    pixels.library = lambda: functions  # type: ignore[assignment]
    target = Target(arguments.seconds, arguments.results)
    if arguments.inputs:
        for path in arguments.inputs:
            target.check(path.read_bytes())
        target.end()
    corpus, dictionary = BUILD / "corpus", BUILD / "tokens"
    corpus.mkdir(exist_ok=True)
    for seed in seeds():
        (corpus / f"seed-{zlib.crc32(seed):08x}").write_bytes(seed)
    dictionary.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in TOKENS))
    options = [
        f"-dict={dictionary}",
        f"-max_len={MAX_BYTES}",
        f"-seed={arguments.seed}",
        "-print_final_stats=0",
        "-verbosity=0",
    ]
    strings = [text.encode() for text in ("jpeg", *options, f"-artifact_prefix={BUILD}/", str(corpus))]
    argv = (ctypes.c_char_p * (len(strings) + 1))(*strings, None)
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)(target)
    argc, pointer = ctypes.c_int(len(strings)), ctypes.cast(argv, ctypes.POINTER(ctypes.c_char_p))
    functions.LLVMFuzzerRunDriver(ctypes.byref(argc), ctypes.byref(pointer), callback)


if __name__ == "__main__":
    main()
