"""The page of the command `check`: the findings about a data set, with small pictures of images that look alike."""

import base64
from html import escape
from pathlib import Path

import cv2
import numpy as np

from ..data import KINDS, CheckResult, Finding, ImageError, ImagePath, read_image
from .records import write_file

PICTURE_SIDE = 96  # pixels
MAX_PICTURES = 400  # on a page, which then has about 2 MB
PICTURED = ("tiny", "copies", "shared", "near_copies", "near_shared")
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }}
li {{ margin: 0.5rem 0; overflow-wrap: anywhere }}
figure {{ display: inline-block; margin: 0.5rem 1rem 0 0; max-width: 16rem; vertical-align: top }}
figcaption {{ font-size: 0.8rem }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
{sections}
</body>
</html>
"""


def write_findings(path: Path, result: CheckResult) -> None:
    """Write the page; it needs no other file.

    Raises:
        UserError: the file cannot be written.
    """
    pictures = _Pictures(result)
    sections = [_section(kind, findings, pictures) for kind, findings in result.findings.items() if findings]
    summary = "; ".join(
        f"{sum(by_class.values()):,} {split} images in {len(by_class):,} classes ({result.folders[split]})"
        for split, by_class in result.counts.items()
    )
    page = PAGE.format(
        title=_escape(f"Check of {result.folders['training']}"),
        summary=_escape(summary),
        sections="\n".join(sections) or "<p>Nothing was found.</p>",
    )
    write_file(path, page.encode(errors="backslashreplace"))


def _section(kind: str, findings: list[Finding], pictures: "_Pictures") -> str:
    items = []
    for finding in findings:
        shown = "".join(pictures.figure(image, is_shown=kind in PICTURED) for image in finding.images)
        items.append(f"<li>{_escape(finding.detail)}<br>{shown}</li>" if shown else f"<li>{_escape(finding.detail)}</li>")
    title = KINDS[kind].replace("`", "")
    return f"<h2>{_escape(title)}: {len(findings):,}</h2>\n<ul>\n" + "\n".join(items) + "\n</ul>"


class _Pictures:
    """Small pictures as data URIs, at most MAX_PICTURES of them."""

    def __init__(self, result: CheckResult) -> None:
        self._result, self._left = result, MAX_PICTURES

    def figure(self, image: ImagePath, *, is_shown: bool) -> str:
        caption = f"<figcaption>{_escape(self._result.path(image))}</figcaption>"
        if not is_shown or not self._left:
            return f"<figure>{caption}</figure>"
        self._left -= 1
        return f'<figure><img src="{self._encode(image)}" alt="">{caption}</figure>'

    def _encode(self, image: ImagePath) -> str:
        try:
            pixels = read_image(self._result.path(image))
        except ImageError:  # moved or changed since it was checked
            return ""
        scale = min(1.0, PICTURE_SIDE / max(pixels.shape[:2]))
        size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
        small = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
        encoded = cv2.imencode(".jpg", small)[1].tobytes()
        return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def _escape(text: object) -> str:
    return escape(str(text))
