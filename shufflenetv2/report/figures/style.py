"""Style of all figures, and how they are drawn without a display and written."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
MARGIN = 0.15  # inches
INK, MUTED, FAINT, LINE = "#15181e", "#5b6472", "#9aa3b2", "#e4e7ec"
ACCENT, BAD, SECOND = "#3355d1", "#c2304a", "#d9730d"
# Each character is drawn with the first font that has it; DejaVu Sans is part of matplotlib.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Color Emoji",
    "Arial Unicode MS",
    "Hiragino Sans",
    "MS Gothic",
)
MAX_CHARACTERS = 28  # of a class name


@contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """Give an empty figure, and write it to a PNG file when the block ends.

    matplotlib is imported here, since it takes half a second, and without its pyplot, which looks for a display.

    Args:
        path: destination; its folder is created if missing.
        width, height: in inches of 100 pixels.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    available = set(fontManager.get_font_names())
    settings: Any = {
        "font.family": [name for name in FONTS if name in available],
        "font.size": 10.0,
        "text.color": INK,
        "text.parse_math": False,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 9.0,
        "lines.linewidth": 1.8,
        "lines.markersize": 4.5,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # drawn as an empty box
        figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=MARGIN, h_pad=MARGIN))
        FigureCanvasAgg(figure)
        yield figure
        content = io.BytesIO()
        figure.savefig(content, format="png", facecolor="white", pil_kwargs={"compress_level": 4})
    write_file(path, content.getvalue())


def shorten(name: str, characters: int = MAX_CHARACTERS) -> str:
    """Make a name a single line of valid characters, and cut it if it is long."""
    name = " ".join(name.encode(errors="backslashreplace").decode().split())
    return name if len(name) <= characters else name[: characters - 1] + "…"


def name_ticks(axes: "Axes", axis: str, positions: Sequence[float], names: Sequence[str], **style: Any) -> None:
    """Name positions on an axis ('x' or 'y') by texts, which may contain any character."""
    set_ticks = axes.set_xticks if axis == "x" else axes.set_yticks
    set_ticks(positions, [shorten(name) for name in names], **style)


def as_percent(axis: Any) -> None:
    """Write the values of an axis in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))


def with_separators(axis: Any) -> None:
    """Write the values of an axis as integers with separators of thousands."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
