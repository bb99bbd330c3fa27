"""Which images there are below a folder, without listing a million of them at every start.

What a folder held is kept in the user's cache, with the folder's inode and times. Adding, removing or
renaming an entry changes the times of the folder that holds it, so at the next start it takes one `stat`
per folder to know that nothing has changed, and only folders that did change are listed again. A listing
without anything known is the same walk, so both give the same.

What the times of a folder cannot vouch for is listed at every start: folders that were changed just
before they were listed, or that hold links to anything but images; and everything on file systems that
do not keep such times.
"""

import contextlib
import gzip
import hashlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from .images import IMAGE_SUFFIXES

# A data set with fewer images leaves nothing in anyone's home: listing it takes 20 ms on a local disk,
# and no more than a second or so where that is fifty times slower.
FEWEST_IMAGES = 10_000

# Data sets that are remembered; an index of a million images takes some 4 MB, and jobs that unpack
# theirs to a new place each time would fill a home with them.
MOST_INDEXES = 16

# A folder that changes twice within one tick of its file system's clock has the same times after the first
# change and after the second (git calls such entries racy). Ticks are up to 2 s long, and servers' clocks
# are a little off.
SETTLED_NS = 10 * 10**9

# Object stores mounted as folders (goofys, Mountpoint for S3, s3fs, ...) show the time of the mount, or
# none, whatever is added below; FAT has no times for its topmost folder.
MOUNTS = Path("/proc/self/mountinfo")  # exists on Linux alone
WITHOUT_TIMES = ("fuse", "vfat", "exfat", "msdos")

LAYOUT = [1, sorted(IMAGE_SUFFIXES)]  # an index that was made by other rules is not read
SUFFIXES = tuple(IMAGE_SUFFIXES)


class Listing(NamedTuple):
    """What a folder held, without what is hidden. Names are sorted and joined by slashes, which no name contains."""

    stamp: str  # the folder's inode and times before it was listed; empty where they vouch for nothing
    folders: str
    images: str


def find_images(folder: Path) -> dict[str, list[str]]:
    """The images below each class folder, at any depth; from the index as far as it holds.

    Links are followed, each real folder once per class. A link that is named like an image is one.

    Returns:
        For each class folder, sorted by name, the paths of its images relative to `folder`, sorted.

    Raises:
        OSError: where a folder cannot be listed.
    """
    file = index_file(folder)
    known = _read(file)
    walk = _Walk(folder, known)
    found = walk.images_by_class()
    if walk.listings != known and sum(map(len, found.values())) >= FEWEST_IMAGES:
        _write(file, walk.listings)
    return found


def index_file(folder: Path) -> Path:
    """Where the index of a folder is kept: $XDG_CACHE_HOME or ~/.cache, by the folder's real path."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # not to be used then, says the XDG specification
        cache = os.path.expanduser("~/.cache")
    digest = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
    return Path(cache, "shufflenetv2", f"{digest}.json.gz")


class _Walk:
    """Goes through the folders below `root` once, and lists those that are not known as they are now."""

    def __init__(self, root: Path, known: dict[str, Listing]) -> None:
        self.root, self.known = root, known
        self.listings: dict[str, Listing] = {}  # by path below the root
        self.started = time.time_ns()
        self.devices_without_times = _devices_without_times()

    def images_by_class(self) -> dict[str, list[str]]:
        return {name: self._images_below(name, real) for name, real in self._folders("", os.path.realpath(self.root))}

    def _images_below(self, class_name: str, real: str) -> list[str]:
        found: list[str] = []
        visited: set[str] = set()
        remaining = [(class_name, real)]
        while remaining:
            where, real = remaining.pop()
            if real in visited:  # a link that leads back up, or to where another one led
                continue
            visited.add(real)
            remaining += reversed(self._folders(where, real))
            inside = where + os.sep
            found += [inside + name for name in _names(self.listings[where].images)]
        return sorted(found)

    def _folders(self, where: str, real: str) -> list[tuple[str, str]]:
        """The folders in a folder, by their paths below the root and by their real paths."""
        path = os.path.join(self.root, where)
        stamp = self._stamp(path)
        listing = self.known.get(where)
        if listing is None or not stamp or listing.stamp != stamp:
            listing = _listed(path, stamp)
        self.listings[where] = listing
        names = _names(listing.folders)
        if listing.stamp:  # there are no links among them, and nothing to ask
            return [(os.path.join(where, name), os.path.join(real, name)) for name in names]
        return [(os.path.join(where, name), os.path.realpath(os.path.join(path, name))) for name in names]

    def _stamp(self, path: str) -> str:
        status = os.stat(path)
        # The second time cannot be set by anyone, as tar and rsync set the first one. A device's number is
        # another one after the next boot, and is left out.
        if max(status.st_mtime_ns, status.st_ctime_ns) > self.started - SETTLED_NS:
            return ""
        if status.st_dev in self.devices_without_times:
            return ""
        return f"{status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"


def _listed(path: str, stamp: str) -> Listing:
    folders, images = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):  # which the listing itself tells, without a `stat`
                folders.append(name)
            elif name.lower().endswith(SUFFIXES):
                images.append(name)
            elif entry.is_symlink():
                stamp = ""  # where it leads can become a folder, or none, without a trace here
                if os.path.isdir(entry.path):
                    folders.append(name)
    return Listing(stamp, "/".join(sorted(folders)), "/".join(sorted(images)))


def _names(joined: str) -> list[str]:
    return joined.split("/") if joined else []


def _devices_without_times() -> set[int]:
    devices = set()
    with contextlib.suppress(OSError):
        for line in MOUNTS.read_text(errors="replace").splitlines():
            mount, _, system = line.partition(" - ")  # "36 35 0:98 / /data rw - fuse.s3fs s3fs rw"
            if system.startswith(WITHOUT_TIMES):
                major, minor = mount.split()[2].split(":")
                devices.add(os.makedev(int(major), int(minor)))
    return devices


def _read(file: Path) -> dict[str, Listing]:
    with contextlib.suppress(Exception):  # absent, cut short, or of anyone: then everything is listed
        layout, listings = json.loads(gzip.decompress(file.read_bytes()))  # gzip has a checksum
        if layout == LAYOUT:
            return {where: Listing(*map(str, fields)) for where, fields in listings.items()}
    return {}


def _write(file: Path, listings: dict[str, Listing]) -> None:
    """Other processes read the file before or after, and write the same. Without a place for it the next start takes longer."""
    if not file.is_absolute():  # a user without a home
        return
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(gzip.compress(json.dumps([LAYOUT, listings]).encode(), compresslevel=1))
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        for old in sorted(file.parent.glob("*.json.gz"), key=os.path.getmtime)[:-MOST_INDEXES]:
            old.unlink(missing_ok=True)
