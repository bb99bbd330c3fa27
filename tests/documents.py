"""The commands and the code that the documents for users show."""

import re
import shlex
import textwrap

from tests.support import ROOT

DOCUMENTS = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
TRANSLATION = "README.zh-CN.md"
FENCED = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

# Commands that the tests do not run, by a word or a part of a word in them. docs/exactness.md shows this table.
PARSED_ONLY = {
    "torchrun": "several processes on GPUs",
    "sbatch": "several machines",
    "--pretrained": "a download",
    "--teacher": "a download",
    "venv": "an environment of its own",
    "pip": "an environment of its own",
    "make": "an environment of its own",
}


def blocks(document: str, language: str) -> list[str]:
    """Return the text of the fenced blocks of a language in a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [textwrap.dedent(block) for name, block in FENCED.findall(text) if name == language]


def commands(document: str) -> list[list[str]]:
    """Return the commands that a document shows, as words: lines of shell blocks, and cells of columns named 'here'."""
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    is_here = False
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        is_here = line.startswith("|") and (is_here or line.endswith("| here |"))
        if is_here and (code := re.match(r"`([^`]+)`", line.rsplit("|", 2)[1].strip())):
            lines.append(code[1])
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def reason_not_to_run(words: list[str]) -> str:
    """Return why the tests do not run a command; '' if they run it."""
    return next((reason for text, reason in PARSED_ONLY.items() if any(text in word for word in words)), "")
