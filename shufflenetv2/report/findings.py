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
{remedy}
{sections}
</body>
</html>
"""


def write_findings(path: Path, result: CheckResult, remedy: str = "") -> None:
    """Write the page; it needs no other file.

    Args:
        remedy: what the user can do, a sentence that stands before the findings.

    Raises:
        UserError: the file cannot be written.
    """
    pictures = _Pictures(result)
    sections = [_section(kind, findings, pictures) for kind, findings in result.findings.items() if findings]
    page = PAGE.format(
        title=_escape(f"Check of {' and '.join(map(str, result.folders.values()))}"),
        summary=_escape(result.describe_sizes()),
        remedy=f"<p>{_escape(remedy)}</p>" if remedy else "",
        sections="\n".join(sections) or "<p>Nothing was found.</p>",
    )
    write_file(path, page.encode(errors="backslashreplace"))


def _section(kind: str, findings: list[Finding], pictures: "_Pictures") -> str:
    items = []
    for finding in findings:
        detail = _escape(finding.detail)
        if kind in PICTURED:
            detail += "<br>" + "".join(map(pictures.figure, finding.images))
        else:
            detail = "".join(f"{_escape(pictures.path(image))}: " for image in finding.images) + detail
        items.append(f"<li>{detail}</li>")
    title = KINDS[kind].capitalize()
    return f"<h2>{_escape(title)}: {len(findings):,}</h2>\n<ul>\n" + "\n".join(items) + "\n</ul>"


class _Pictures:
    """Small pictures as data URIs, at most MAX_PICTURES of them."""

    def __init__(self, result: CheckResult) -> None:
        self._result, self._left = result, MAX_PICTURES

    def path(self, image: ImagePath) -> Path:
        return self._result.path(image)

    def figure(self, image: ImagePath) -> str:
        caption = f"<figcaption>{_escape(self.path(image))}</figcaption>"
        if not self._left:
            return f"<figure>{caption}</figure>"
        self._left -= 1
        return f'<figure><img src="{self._encode(image)}" alt="">{caption}</figure>'

    def _encode(self, image: ImagePath) -> str:
        try:
            pixels = read_image(self.path(image))
        except ImageError:  # moved or changed since it was checked
            return ""
        scale = min(1.0, PICTURE_SIDE / max(pixels.shape[:2]))
        size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
        small = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
        encoded = cv2.imencode(".jpg", small)[1].tobytes()
        return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def _escape(text: object) -> str:
    return escape(str(text))
