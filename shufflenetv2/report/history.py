"""Sessions of a run: the time that it took, its interruptions, and what they cost."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .runfiles import LogLine, RunFiles


@dataclass(frozen=True)
class Session:
    """A process of a run, from its start or resume to its end.

    Attributes:
        start, end: seconds since the epoch; the end of a killed or a running session is the time of its last log line.
        first, last: the iteration after which the session started, and the last one that it is known to have performed.
        reason: why it ended; '' if nothing was written about it.
        repeated: iterations of the previous session that this one performed again.
        pause: seconds between the previous session and this one.
    """

    start: float
    end: float
    first: int
    last: int
    reason: str
    repeated: int
    pause: float


def read_sessions(run: RunFiles) -> list[Session]:
    """Return the sessions of a run, in order, since it was started from the beginning."""
    sessions: list[Session] = []
    times = [line.time for line in run.lines]
    events = [event for event in run.sessions if _time(event) is not None]
    starts = [number for number, event in enumerate(events) if event.get("event") == "start" and not event.get("iteration")]
    events = events[starts[-1] if starts else 0 :]  # without those of a run that this one has replaced
    for number, event in enumerate(events):
        if event.get("event") != "start":
            continue
        start, first = _time(event) or 0.0, int(event.get("iteration", 0))
        following = events[number + 1] if number + 1 < len(events) else None
        if following and following.get("event") == "end":
            end, last = _time(following) or start, int(following.get("iteration", first))
            reason = str(following.get("reason", ""))
        else:
            end, last = _last_sign(run.lines, times, start, _time(following) if following else None, first)
            reason = ""
        previous = sessions[-1] if sessions and first > 0 else None
        repeated = max(0, previous.last - first) if previous else 0
        pause = max(0.0, start - previous.end) if previous else 0.0
        sessions.append(Session(start, max(start, end), first, last, reason, repeated, pause))
    return sessions


def describe_state(sessions: Sequence[Session], is_final: bool, now: float) -> tuple[str, str]:
    """Return the state of a run ('running', 'finished', 'stopped' or 'failed') and the reason for it, if any.

    Args:
        is_final: the result of the end of the training has been written.
        now: seconds since the epoch.
    """
    if not sessions:
        return ("finished" if is_final else "running"), ""
    reason = sessions[-1].reason
    if reason == "finished":
        return "finished", ""
    if reason.startswith("error"):
        return "failed", reason.removeprefix("error:").strip()
    if reason:
        return "stopped", reason
    silent = now - sessions[-1].end
    if silent > max(3600.0, (sessions[-1].end - sessions[-1].start) / 10):
        return "stopped", "no sign of life since the last line of the log"
    return "running", ""


def _time(event: dict[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(event["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def _last_sign(
    lines: Sequence[LogLine], times: Sequence[float], start: float, following: float | None, first: int
) -> tuple[float, int]:
    """Return the time of the last log line between two starts, and the last iteration that these lines name.

    Args:
        times: of the lines.
    """
    # The log has whole seconds, and the lines before a start belong to the previous session.
    mine = lines[bisect_right(times, start - 1) : bisect_right(times, following - 1) if following else len(lines)]
    iterations = [line.iteration for line in mine if line.iteration is not None]
    return (mine[-1].time if mine else start), (iterations[-1] if iterations else first)
