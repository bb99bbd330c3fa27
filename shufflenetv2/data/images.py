"""Decode image files to uint8 pixels (H, W, 3) in BGR order.

Decoding takes most of the time of loading a training image. Two methods reduce it for sequential JPEGs: only the part that the
crop needs is decoded; and if the crop will be shrunk, it is decoded at 1/2, 1/4 or 1/8 of its size, which a JPEG decoder can do
from the low frequencies.
"""

import errno
import logging
import os
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

# Silence OpenCV's messages about images that it cannot read: Pillow reads some of these, and ImageError reports the others.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import cv2
import numpy as np
import PIL.Image

from ..config import MAX_IMAGE_PIXELS
from ..errors import UserError, one_line
from ..files import NotRegularFileError, TooLargeFileError, describe_error, read_regular_file
from .headers import PNG_SIGNATURE, JpegFrame, has_all_rows, has_whole_chunks, image_size, jpeg_frame
from .jitter import UNCHANGED, Jitter
from .resize import Part, ResizeError, compiled, needed_box, resize, resize_part

logging.getLogger("PIL").addHandler(logging.NullHandler())  # Pillow logs errors before it raises them

# The loader runs its own threads; OpenCV's threads would compete with them for the cores.
cv2.setNumThreads(0)

# scale: flag with which OpenCV decodes a JPEG at 1 / scale of its size
REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
MAX_SCALE = max(REDUCED)

# The machine lacks something, and nothing is known about the image: open files, memory
MACHINE_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

MAX_IMAGE_BYTES = 256 * 2**20  # of a file; a photograph of 100 million pixels takes about 50 MiB as JPEG

_max_pixels = MAX_IMAGE_PIXELS  # see limit_pixels

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".ico", ".pcx", ".sgi"}
)


class ImageError(UserError):
    """A file is not a readable image.

    Attributes:
        kind: what is wrong with the file: 'unreadable' (missing, no permission, ...), 'not a file' (a FIFO, a device,
            a folder), 'too large', or 'damaged' (not an image, or one whose content is incomplete or altered).
    """

    status = 1

    def __init__(self, message: str, kind: Literal["unreadable", "not a file", "too large", "damaged"] = "damaged") -> None:
        super().__init__(message)
        self.kind = kind


class CropResize(NamedTuple):
    """The first steps of augmentation: crop, resize, flips and colour jitter."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]  # height and width of the result
    interpolation: str = "bilinear"  # a key of resize.INTERPOLATIONS
    hflip: bool = False
    vflip: bool = False
    jitter: Jitter = UNCHANGED


class Image:
    """An image whose size is known before its pixels are decoded.

    Attributes:
        name: path of the file, or a description, for error messages.
    """

    name: str
    height: int
    width: int

    def crop(self, top: int, left: int, height: int, width: int, min_size: tuple[int, int] | None = None) -> np.ndarray:
        """Return a rectangle of the image, uint8 (height, width, 3), BGR; valid until this thread's next call.

        Args:
            min_size: (height, width) in pixels. If given, the result may be smaller than the rectangle by a factor of 2, 4 or
                8, with its edges rounded to whole pixels, but not smaller than this.
        """
        raise NotImplementedError

    def crop_resize(self, crop: CropResize, out: np.ndarray | None = None) -> np.ndarray:
        """Crop, resize, flip and jitter the image.

        Args:
            out: uint8 (*crop.size, 3), contiguous, receives the result; allocated by default.

        Returns:
            uint8 (*crop.size, 3), BGR.
        """
        pixels = self.crop(crop.top, crop.left, crop.height, crop.width, min_size=crop.size)
        has_jitter = crop.jitter != UNCHANGED
        pixels = resize(
            pixels,
            *crop.size,
            crop.interpolation,
            hflip=crop.hflip,
            vflip=crop.vflip,
            out=None if has_jitter else out,
        )
        return crop.jitter(pixels, out) if has_jitter else pixels

    def resize_part(self, part: Part, interpolation: str = "bilinear", min_size: tuple[int, int] | None = None) -> np.ndarray:
        """Resize the image, and return a part of the result; decode and compute no more than the part needs, where possible.

        Args:
            min_size: see `crop`; the whole image is then decoded.

        Returns:
            uint8 (part.height, part.width, 3), BGR.

        Raises:
            ImageError: the resized image is so large that it cannot be computed.
        """
        source_size = self.height, self.width
        try:
            if min_size is not None:
                pixels = self.crop(0, 0, *source_size, min_size=min_size)
                return resize_part(pixels, (0, 0), pixels.shape[:2], part, interpolation)
            box = needed_box(source_size, part, interpolation)
            return resize_part(self.crop(*box), box[:2], source_size, part, interpolation)
        except (ResizeError, cv2.error) as error:
            raise ImageError(
                f"{self.name} is too long and thin: {self.width:,} x {self.height:,} pixels would be resized to "
                f"{part.size[1]:,} x {part.size[0]:,}; remove the file or replace it",
                "too large",
            ) from error


class DecodedImage(Image):
    """An image in memory, uint8 (H, W, 3), BGR."""

    def __init__(self, pixels: np.ndarray, name: str = "an image") -> None:
        self.pixels, self.name = pixels, name
        self.height, self.width = pixels.shape[:2]

    def crop(self, top: int, left: int, height: int, width: int, min_size: tuple[int, int] | None = None) -> np.ndarray:
        return self.pixels[top : top + height, left : left + width]


class SequentialJpeg(Image):
    """A sequential JPEG file, of which a part can be decoded, at full or reduced size.

    Damage is found in the rows down to the end of the part.
    """

    def __init__(self, name: str, encoded: bytes, height: int, width: int) -> None:
        self.name, self.encoded, self.height, self.width = name, encoded, height, width

    def crop(self, top: int, left: int, height: int, width: int, min_size: tuple[int, int] | None = None) -> np.ndarray:
        scale, box = reduced_box((top, left, height, width), min_size)
        pixels: np.ndarray | None = None if compiled is None else compiled.decode_jpeg(self.encoded, scale, box)
        if pixels is None:
            frame = jpeg_frame(self.encoded)
            assert frame is not None
            _require_intact(self.name, self.encoded, frame)
            whole = decode_with_opencv(self.encoded, REDUCED[scale])
            if whole is None:
                raise unreadable(self.name)
            top, left, height, width = box
            pixels = whole[top : top + height, left : left + width]
        return pixels

    def crop_resize(self, crop: CropResize, out: np.ndarray | None = None) -> np.ndarray:
        if compiled is not None and crop.interpolation == "bilinear":
            scale, box = reduced_box((crop.top, crop.left, crop.height, crop.width), crop.size)
            image = np.empty((*crop.size, 3), np.uint8) if out is None else out
            # All steps in one call, because a thread that returned to Python between steps would wait for the interpreter lock.
            if compiled.jpeg_crop_resize(self.encoded, scale, box, crop.jitter, (crop.hflip, crop.vflip), image):
                return image
        return super().crop_resize(crop, out)


def reduced_box(box: tuple[int, int, int, int], min_size: tuple[int, int] | None) -> tuple[int, tuple[int, int, int, int]]:
    """Return the largest reduction at which a box is not smaller than `min_size`, and the box in the reduced image.

    Args:
        box: (top, left, height, width) in pixels.
        min_size: (height, width) in pixels; None for no reduction.

    Returns:
        (scale, box): the image is reduced to 1 / scale of its size; scale is 1, 2, 4 or 8.
    """
    top, left, height, width = box
    scale = 1
    if min_size is not None:
        while scale < MAX_SCALE and height >= 2 * scale * min_size[0] and width >= 2 * scale * min_size[1]:
            scale *= 2
    top, bottom, left, right = ((edge + scale // 2) // scale for edge in (top, top + height, left, left + width))
    return scale, (top, left, bottom - top, right - left)


def open_image(path: str | Path) -> Image:
    """Open an image file of any format that OpenCV or Pillow reads.

    Grey, palette, CMYK and 16-bit images are converted to three channels of 8 bits (the upper 8 of 16 bits); transparency is
    dropped. The pixels of grey and three-colour JPEG files are bit-identical to Pillow's.

    Raises:
        ImageError: for a file that cannot be read or decoded, or has more pixels than `limit_pixels` allows; for some files
            only when `crop` or `crop_resize` is called.
    """
    return open_encoded(str(path), read_file(path))


def read_file(path: str | Path) -> bytes:
    """Read the bytes of an image file.

    Raises:
        ImageError: for a file that cannot be read.
        UserError: for one of MACHINE_ERRORS.
    """
    try:
        return read_regular_file(path, MAX_IMAGE_BYTES)
    except TooLargeFileError as error:
        raise ImageError(f"{path} is too large: {error.strerror}; remove it or replace it", "too large") from error
    except (NotRegularFileError, IsADirectoryError) as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}", "not a file") from error
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise UserError(f"{path} cannot be read: {describe_error(error)}", status=1) from error
        raise ImageError(f"{path} cannot be read: {error.strerror}", "unreadable") from error


def open_encoded(name: str, encoded: bytes) -> Image:
    """Open an image from the bytes of its file; see `open_image`.

    Args:
        name: path of the file, for error messages.
    """
    frame = jpeg_frame(encoded) if encoded.startswith(b"\xff\xd8") else None
    try:
        size = frame[:2] if frame else image_size(encoded)
        _check_size(name, size)
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {one_line(error)}", "too large") from error
    if frame and frame.is_supported and frame.has_end:
        return SequentialJpeg(name, encoded, frame.height, frame.width)
    if frame:
        _require_intact(name, encoded, frame)
    is_png = encoded.startswith(PNG_SIGNATURE)
    # OpenCV does not get what it could decode to another size than that which was checked.
    is_for_opencv = size is not None and (not is_png or has_whole_chunks(encoded))
    pixels = decode_with_opencv(encoded) if is_for_opencv else None
    if pixels is not None and pixels.shape[:2] != size:
        raise damaged(name)
    if pixels is None and is_png and not has_all_rows(encoded):
        raise damaged(name)
    return DecodedImage(decode_with_pillow(name, encoded) if pixels is None else pixels, name)


def _require_intact(name: str, encoded: bytes, frame: JpegFrame) -> None:
    """Raise an ImageError for a JPEG whose data is incomplete or altered, which OpenCV would decode to partly grey pixels.

    The compiled code decodes the data. Without it, only the marker of the end is looked for.
    """
    is_damaged = not frame.has_end
    if compiled is not None and not is_damaged:
        is_damaged = compiled.is_intact_jpeg(encoded, frame.height, frame.width) is False
    if is_damaged:
        raise damaged(name)


def limit_pixels(max_pixels: int) -> None:
    """Set the largest number of pixels of an image that this process decodes; see `open_image`."""
    global _max_pixels
    _max_pixels = max_pixels
    if PIL.Image.MAX_IMAGE_PIXELS is not None:
        PIL.Image.MAX_IMAGE_PIXELS = max(max_pixels, PIL.Image.MAX_IMAGE_PIXELS)  # Pillow warns of images above its limit


def _check_size(name: str, size: tuple[int, int] | None) -> None:
    if size is not None and size[0] * size[1] > _max_pixels:
        height, width = size
        raise ImageError(
            f"{name} is too large: {width:,} x {height:,} pixels, and `max_image_pixels` is {_max_pixels:,}; "
            "raise the limit, or remove or replace the file",
            "too large",
        )


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as uint8 (H, W, 3), BGR; see `open_image`."""
    image = open_image(path)
    return image.crop(0, 0, image.height, image.width).copy()


def decode_with_opencv(encoded: bytes, reduced: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """Decode an image as uint8 (H, W, 3), BGR; None if OpenCV cannot read it.

    Args:
        reduced: a value of REDUCED.
    """
    try:
        # Orientation tags are ignored: Pillow ignores them, and so does the original trainer.
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), reduced | cv2.IMREAD_IGNORE_ORIENTATION) if encoded else None
    except cv2.error:  # more pixels than OpenCV allows
        return None
    # PFM files have no channel axis.
    return pixels if pixels is not None and pixels.ndim == 3 else None


def decode_with_pillow(name: str, encoded: bytes) -> np.ndarray:
    """Decode an image as uint8 (H, W, 3), BGR.

    Raises:
        ImageError: if Pillow cannot read the image.
    """
    try:
        with PIL.Image.open(BytesIO(encoded)) as image:
            if image.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            rgb = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise unreadable(name) from error
    return np.ascontiguousarray(rgb[:, :, ::-1])


def damaged(name: str) -> ImageError:
    """Return the error for a file of a known format whose pixels are not all there."""
    return ImageError(f"{name} is damaged: its data is incomplete or altered; remove the file or replace it")


def unreadable(name: str) -> ImageError:
    """Return the error for a file that neither OpenCV nor Pillow can decode."""
    return ImageError(f"{name} is not a readable image; remove it or replace it")
