"""What a run tells: on the terminal and in its log."""

from .journal import Journal as Journal
