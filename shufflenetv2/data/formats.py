"""Formats of image files: their usual suffixes, and the bytes by which their content is recognized."""

from .images import IMAGE_SUFFIXES

# Each list begins with the suffix to recommend.
SUFFIXES_OF: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG 2000": (".jp2", ".j2k"),
}
MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
)
BYTES_READ = 16  # that `content_format` looks at


def content_format(start: bytes) -> str:
    """Return the format of an image file from the first bytes of its content; '' if it is none of SUFFIXES_OF."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    return next((format for magic, format in MAGIC if start.startswith(magic)), "")


def has_image_suffix(name: str) -> bool:
    """Return whether a data set of class folders contains a file of this name.

    The suffix may be in upper case.
    """
    return name.lower().endswith(tuple(IMAGE_SUFFIXES))
