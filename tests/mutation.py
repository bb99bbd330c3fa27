"""Damaged files: a seeded mutator of valid files, and how a command must end that reads one."""

import atexit
import contextlib
import functools
import io
import random
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shufflenetv2.cli.command import run_command
from shufflenetv2.cli.parser import OptionParser

INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)
OUT_OF_MEMORY = ("out of memory", "MemoryError")

# Texts in the place of a name, a number or a value of a text file
HOSTILE_TOKENS = (
    *(
        b"",
        b"0",
        b"-1",
        b"1e999",
        b"-Infinity",
        b"NaN",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b'"x"',
        b"[[1]]",
        b"0x10",
        b"1_0",
    ),
    *(
        b"9" * 25,
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
        b'"' + b"a" * 200_000 + b'"',
        b'"\\ud800"',
        b'"\\u0000"',
        b"\xff\xfe",
    ),
    *(
        b"'=1+1",
        b'"',
        b",",
        b"\n",
        b"\r",
        b"\0",
        b"2026-99-99 00:00:00",
        b"0001-01-01T00:00:00",
        b"&a [*a]",
        b"!!python/object:x",
    ),
)
TOKEN = re.compile(rb'"[^"\n]*"|-?\d[\w.+-]*|[A-Za-z_][\w.-]*|[^\w\s]')


def end(parser: OptionParser, run: Callable[[], object]) -> int:
    """Run a command in this process, check that it ends well or with one line on standard error, and return its status.

    Raises:
        Exception: the command would show a traceback.
        AssertionError: the command would end otherwise, or could not allocate memory.
    """
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            status = run_command(parser, lambda: (run(), 0)[1])
        except SystemExit as exit_:  # after the help
            status = int(exit_.code or 0)
    text = errors.getvalue()
    assert status in (0, 1, 2)
    assert text.count("\n") == (status != 0), text
    assert text.rstrip("\n").isprintable(), text
    assert not any(words in text for words in OUT_OF_MEMORY), text
    return status


@functools.cache
def workplace() -> Path:
    """Return a folder for the inputs of this process, in memory if possible; it is removed at the end of the process."""
    folder = tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@dataclass(frozen=True)
class Mutator:
    """Damage valid files: an input is a function of the state of a random generator.

    Args:
        seeds: returns the content of valid files.
        is_text: change names, numbers and lines besides bytes.
        repair: makes the damage consistent with checksums, for four of five inputs.
        parts: returns the parts of a seed in which half of the changes fall, for files that are mostly plain values.
    """

    seeds: Callable[[], Sequence[bytes]]
    is_text: bool = False
    repair: Callable[[bytes], bytes] | None = None
    parts: Callable[[bytes], Sequence[range]] | None = None

    def __call__(self, rng: random.Random) -> bytes:
        seeds = self.seeds()
        original = rng.choice(seeds)
        content = bytearray(original)
        parts = self.parts(original) if self.parts else [range(min(64, len(original)))]
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            if self.is_text and rng.random() < 0.7:
                _change_text(content, rng)
            else:
                part = rng.choice(parts) if rng.random() < 0.5 else range(len(content))
                _change_bytes(content, min(rng.randrange(part.start, max(part.stop, part.start + 1)), len(content)), rng, seeds)
        changed = bytes(content)
        return self.repair(changed) if self.repair and rng.random() < 0.8 else changed


def _change_bytes(content: bytearray, at: int, rng: random.Random, seeds: Sequence[bytes]) -> None:
    """Change bits, a byte or an integer; cut, delete, insert or copy a block; or continue with another seed."""
    kind, length = rng.randrange(9), 1 + int(rng.expovariate(0.1))
    if kind == 0 and at < len(content):
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < len(content):
        content[at] = rng.randrange(256)
    elif kind in (2, 3):
        size = rng.choice((1, 2, 4))
        number = (rng.choice(INTEGERS) if rng.random() < 0.7 else rng.getrandbits(32)) % 2 ** (8 * size)
        content[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    elif kind == 4:
        del content[at : at + length]
    elif kind == 5:
        content[at:at] = rng.randbytes(length) if rng.random() < 0.5 else bytes([rng.choice((0, 255))]) * length
    elif kind == 6:
        source = rng.randrange(len(content) + 1)
        content[at : at + rng.choice((0, length))] = content[source : source + length]
    elif kind == 7:
        other = rng.choice(seeds)
        content[at:] = other[rng.choice((at, rng.randrange(len(other)))) :]
    elif kind == 8 and rng.random() < 0.5:
        del content[at:]


def _change_text(content: bytearray, rng: random.Random) -> None:
    """Replace, swap or repeat a name, a number or a line."""
    if rng.random() < 0.3:
        lines = content.split(b"\n")
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.randrange(5) if rng.random() < 0.1 else rng.randrange(4)
        if kind == 4:
            lines[a:a] = [lines[a]] * (20_000 // (len(lines[a]) + 1))
        elif kind == 0:
            del lines[a]
        elif kind == 1:
            lines.insert(b, lines[a])
        elif kind == 2:
            lines[a], lines[b] = lines[b], lines[a]
        else:
            lines[a] = lines[a][: rng.randrange(len(lines[a]) + 1)]
        content[:] = b"\n".join(lines)
        return
    tokens = list(TOKEN.finditer(content))
    if not tokens:
        content += rng.choice(HOSTILE_TOKENS)
        return
    start, stop = rng.choice(tokens).span()
    replacement = rng.choice(HOSTILE_TOKENS) if rng.random() < 0.7 else bytes(rng.choice(tokens)[0])
    content[start:stop] = replacement


def repair_png(content: bytes) -> bytes:
    """Give the chunks of a PNG file, or what is left of them, right checksums."""
    at, result = 8, bytearray(content[:8])
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunk = content[at + 4 : at + 8 + length]
        result += struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return bytes(result) + content[at:]


def repair_zip(content: bytes) -> bytes:
    """Give the members of an archive without compression right checksums, as far as its directory can be read."""
    result = bytearray(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members, at = archive.infolist(), archive.start_dir
    except Exception:  # zipfile raises errors of many types
        return content
    with contextlib.suppress(struct.error):  # the damage is in the directory
        for member in members:
            name, extra = struct.unpack_from("<HH", content, max(0, member.header_offset) + 26)
            start = member.header_offset + 30 + name + extra
            struct.pack_into("<I", result, at + 16, zlib.crc32(content[start : start + member.file_size]))
            at += 46 + sum(struct.unpack_from("<HHH", content, at + 28))
    return bytes(result)


def pickle_parts(content: bytes) -> list[range]:
    """Return the places of what is not a value of a tensor in a file of torch.save; for other files their beginning."""
    if not content.startswith(b"PK"):
        return [range(min(len(content), 4096))]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members, directory = archive.infolist(), archive.start_dir
        data = next(member for member in members if member.filename.endswith("data.pkl"))
        start = content.index(archive.read(data))
    headers = [range(member.header_offset, member.header_offset + 64) for member in members[:4]]
    return [*[range(start, start + data.file_size)] * 5, range(directory, len(content)), *headers]
