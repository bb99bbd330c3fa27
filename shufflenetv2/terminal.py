"""Standard output: lines, and on a terminal one progress bar under them.

Where standard output is not a terminal, a long task prints a plain line from time to time, without control characters.
Output that cannot be written, because the reader has ended or the disk is full, is dropped: the program goes on.
"""

import contextlib
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, TextIO, TypeVar

from .errors import UserError, printable

Item = TypeVar("Item")

DEFAULT_WIDTH = 80  # columns of a terminal that does not know its size
MIN_BAR, MAX_BAR = 6, 30  # columns
REDRAW_INTERVAL = 0.1  # seconds
PLAIN_INTERVAL = 15.0  # seconds between two lines about a task where there is no bar
RATE_SECONDS, RATE_SAMPLES = 30.0, 5  # the speed is that of the latest 30 seconds, or of the latest 5 steps if they take longer
MEGABYTE = 1_000_000
FILLED, EMPTY = "━", "─"
ASCII_FILLED, ASCII_EMPTY = "#", "-"


class _Output:
    """The standard output of this process, and the bars that are in progress; the last bar is the one that is shown."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.quiet = self.silent = False
        self.bars: list[Progress] = []
        self._dropped: TextIO | None = None  # a stream that cannot be written
        self._shown = 0  # columns of the bar on the screen

    def is_terminal(self) -> bool:
        try:
            return bool(sys.stdout) and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        except ValueError:  # closed
            return False

    def width(self) -> int:
        """Return the columns of the terminal. Asked for each line, because windows are resized."""
        try:
            columns = os.get_terminal_size(sys.stdout.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return columns or DEFAULT_WIDTH

    def can_encode(self, text: str) -> bool:
        try:
            text.encode(sys.stdout.encoding or "ascii")
        except UnicodeEncodeError:
            return False
        return True

    def write(self, text: str) -> None:
        stream = sys.stdout
        if stream is None or stream is self._dropped or self.silent:
            return
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            self._dropped = stream
            discard(stream)

    def show_line(self, text: str) -> None:
        """Write a line above the bar, if there is one."""
        self.clear_bar()
        self.write(f"{text}\n")
        self.redraw()

    def clear_bar(self) -> None:
        if self._shown:
            self.write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def redraw(self) -> None:
        """Show the last bar in place of what the screen shows."""
        if not self.bars or self.quiet or self.silent or not self.is_terminal():
            self.clear_bar()
            return
        text = self.bars[-1].text(self.width() - 1)  # the last column would move the cursor to the next line
        rest = min(self._shown, self.width() - 1) - len(text)
        self.write("\r" + text + " " * rest)
        self._shown = max(len(text), len(text) + rest)


_output = _Output()


def configure(*, quiet: bool = False, silent: bool = False) -> None:
    """Set what this process prints.

    Args:
        quiet: only lines that are marked as important.
        silent: nothing, for processes other than the first.
    """
    _output.quiet, _output.silent = quiet, silent


def has_bars() -> bool:
    """Return whether progress is shown as a bar, and not as plain lines."""
    return _output.is_terminal()


def clear() -> None:
    """Remove all bars, whose tasks have ended; needed where an error ended them."""
    with _output.lock:
        _output.bars.clear()
        _output.clear_bar()


def show(*lines: str, important: bool = False) -> None:
    """Print lines, in which characters that are not printable are escaped: they may contain names of files and classes.

    Args:
        important: print it although the output is quiet.
    """
    with _output.lock:
        if important or not _output.quiet:
            _output.show_line("\n".join(map(printable, lines)))


def open_standard_streams() -> None:
    """Open the null device in the place of closed standard streams.

    Otherwise the first files that are opened would get their numbers, and what libraries print would be written into them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def discard(stream: TextIO) -> None:
    """Drop what cannot be written to a standard stream, which Python tries to write again at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def write_result(text: str = "") -> None:
    """Write what a command was asked for, and what is still to be written, to standard output.

    Raises:
        BrokenPipeError: the reader, such as `head`, has ended.
        UserError: it cannot be written for another reason, such as a full disk.
    """
    if not (stream := sys.stdout):
        return
    try:
        stream.write(f"{text}\n" if text else "")
        stream.flush()
    except OSError as error:
        discard(stream)
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"standard output cannot be written: {error.strerror}", status=1) from error


def write_error(text: str) -> None:
    """Write one line to standard error, if it can be written; the exit status says that there was an error as well."""
    if stream := sys.stderr or sys.stdout:
        try:
            stream.write(f"{printable(text)}\n")
            stream.flush()
        except (OSError, ValueError):
            discard(stream)


class Progress:
    """Progress of a task, as a bar on a terminal and as plain lines elsewhere; close it, or use it as a context manager.

    A task within a task replaces the bar of the outer one until it is closed, and the speed of the outer task does not count
    its time.

    Args:
        description: of the task, at the beginning of the line.
        total: number of steps; None if unknown.
        unit: of a step, plural: 'images'.
        initial: steps that were done before, which do not count for the speed.
        plain: print plain lines where there is no bar.

    Attributes:
        notes: texts at the end of the line; the last of them are left out where they do not fit.
        seconds_after: time that is needed in addition to that of the steps.
    """

    def __init__(self, description: str, total: int | None, unit: str, *, initial: int = 0, plain: bool = True) -> None:
        self.description, self.total, self.unit, self.count = description, total, unit, initial
        self.notes: tuple[str, ...] = ()
        self.seconds_after = 0.0
        self._plain = plain
        self._samples: deque[tuple[float, int]] = deque()  # (time, count)
        self._opened = self._drawn = time.monotonic()
        with _output.lock:
            _output.bars.append(self)
            _output.redraw()

    def update(self, count: int) -> None:
        """Set the number of steps done."""
        with _output.lock:
            self.count, now = count, time.monotonic()
            # The first step is often slower: the speed is measured from its end on.
            if not self._samples or now - self._samples[-1][0] >= REDRAW_INTERVAL or len(self._samples) < RATE_SAMPLES:
                self._samples.append((now, count))
                while len(self._samples) > RATE_SAMPLES and now - self._samples[0][0] > RATE_SECONDS:
                    self._samples.popleft()
            if has_bars():
                if now - self._drawn >= REDRAW_INTERVAL or count == self.total:
                    self._drawn = now
                    _output.redraw()
            elif self._plain and now - self._drawn >= PLAIN_INTERVAL:
                self._drawn = now
                show(self._plain_text())

    def advance(self, steps: int = 1) -> None:
        """Add to the number of steps done."""
        self.update(self.count + steps)

    def speed(self) -> float:
        """Return the steps per second of the latest time; 0 if it is not known yet."""
        if len(self._samples) < 2:
            return 0.0
        (started, first), (ended, last) = self._samples[0], self._samples[-1]
        return (last - first) / (ended - started) if ended > started else 0.0

    def time_left(self) -> str:
        """Return the time until the end in words, '' if it is not known."""
        speed = self.speed()
        if self.total is None or not speed:
            return ""
        seconds = max(0, self.total - self.count) / speed + self.seconds_after
        return f"{in_time(seconds)} left" if seconds else ""

    def text(self, width: int) -> str:
        """Return the bar with its texts, in at most `width` columns; what does not fit is left out, from the end."""
        texts = [self._count_text(), *filter(None, (self.time_left(), self._speed_text(), *self.notes))]
        while len("  ".join(texts)) > width and len(texts) > 1:
            texts.pop()
        columns = min(MAX_BAR, width - len("  ".join(texts)) - 1)
        if self.total and columns >= MIN_BAR:
            filled, empty = (FILLED, EMPTY) if _output.can_encode(FILLED + EMPTY) else (ASCII_FILLED, ASCII_EMPTY)
            done = min(columns, columns * self.count // self.total)
            texts[0] += f" {filled * done}{empty * (columns - done)}"
        return "  ".join(texts)[:width]

    def _plain_text(self) -> str:
        texts = (f"{self._count_text()} {self.unit}", self._speed_text(), self.time_left(), *self.notes)
        return "  ".join(filter(None, texts))

    def _count_text(self) -> str:
        of_total = "" if self.total is None else f"/{self.total:,}"
        return f"{self.description} {self.count:,}{of_total}".lstrip()

    def _speed_text(self) -> str:
        speed = self.speed()
        if not speed:
            return ""
        if speed < 1:
            return f"{1 / speed:,.1f} s/{self.unit.removesuffix('s')}"
        return f"{speed:,.{1 if speed < 100 else 0}f} {self.unit}/s"

    def close(self) -> None:
        """Remove the bar."""
        with _output.lock:
            if self not in _output.bars:
                return
            _output.bars.remove(self)
            duration = time.monotonic() - self._opened
            if _output.bars:
                _output.bars[-1]._skip(duration)
            _output.redraw()

    def _skip(self, seconds: float) -> None:
        """Exclude a time that has just passed from the measurement of the speed."""
        self._samples = deque((then + seconds, count) for then, count in self._samples)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def progress(
    items: Iterable[Item], description: str, total: int, unit: str, steps: Callable[[Item], int] = lambda item: 1
) -> Iterator[Item]:
    """Yield items, and show the progress; see `Progress`. An item counts as done when the next one is requested.

    Args:
        steps: returns the number of steps of an item.
    """
    with Progress(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance(steps(item))


@contextlib.contextmanager
def show_downloads(*modules: ModuleType) -> Iterator[None]:
    """Show the downloads of a block as other tasks are shown.

    Args:
        modules: torch.hub, torchvision.datasets.utils: modules with downloads that show their progress with a global `tqdm`.
    """
    replaced = {module: vars(module)["tqdm"] for module in modules if "tqdm" in vars(module)}
    for module in replaced:
        vars(module)["tqdm"] = _Download
    try:
        yield
    finally:
        for module, tqdm in replaced.items():
            vars(module)["tqdm"] = tqdm


class _Download(Progress):
    """What `show_downloads` puts in the place of tqdm, with the arguments that tqdm has for a download."""

    def __init__(self, *, total: int | None = None, **_: Any) -> None:
        super().__init__("downloading", total and math.ceil(total / MEGABYTE), "MB")
        self._bytes = 0

    def update(self, count: int) -> None:
        """Count bytes."""
        self._bytes += count
        super().update(round(self._bytes / MEGABYTE))


def in_time(seconds: float) -> str:
    """Return a duration in one or two units: '45 s', '3 min', '2 h 5 min', '23 h', '3 d 4 h'."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 10 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    if hours < 24:
        return f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"
