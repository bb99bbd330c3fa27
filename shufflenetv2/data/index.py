"""Find the images below a folder, without listing a million files at every start.

The listing of each folder is cached in the user's cache directory, together with the folder's inode and times. Adding, removing
or renaming an entry changes the times of the folder that contains the entry. At the next start, one `stat` per folder shows
which folders have changed, and only these are listed again. The same code walks with and without a cache, so the result is the
same.

Three kinds of folders are listed at every start, because unchanged times do not prove that their content is unchanged: folders
modified shortly before they were listed, folders that contain links to anything but images, and folders on file systems without
reliable times.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..files import MAX_RECORD_BYTES, nearest_path, read_regular_file, write_bytes
from .images import IMAGE_SUFFIXES

# Smaller data sets are not cached: listing 10,000 images takes 20 ms on a local disk, and would take a second on a network file
# system that is fifty times slower.
MIN_CACHED_IMAGES = 10_000

# Number of data sets whose listings are kept. The cache of a million images takes about 4 MB; without this limit, jobs that
# unpack their data to a new path each time would fill the home directory.
MAX_CACHE_FILES = 16

# If a folder changes twice within one tick of its file system's clock, its times are the same after both changes (git calls
# such entries "racy"). A listing is only cached if the folder's last change was at least this long ago: ticks are up to 2 s
# long, and the clocks of file servers differ a little.
MIN_AGE_NS = 10 * 10**9

# Object stores mounted as folders (goofys, Mountpoint for S3, s3fs, ...) give folders the time of the mount or no time, and do
# not update it; FAT has no times for its root folder.
FILE_SYSTEMS_WITHOUT_TIMES = ("fuse", "vfat", "exfat", "msdos")
MOUNT_TABLE = Path("/proc/self/mountinfo")  # exists on Linux only

CACHE_FORMAT = [1, sorted(IMAGE_SUFFIXES)]  # cache files with a different format are ignored
SUFFIXES = tuple(IMAGE_SUFFIXES)

OnError = Callable[[OSError], object]


class Listing(NamedTuple):
    """The visible entries of a folder. Names are sorted and joined by slashes, which no file name contains."""

    stamp: str  # inode and times of the folder before it was listed; empty if they do not prove that it is unchanged
    folders: str
    images: str


def find_images(folder: str | Path, on_error: OnError | None = None) -> list[str]:
    """List the images below a folder, at any depth, without using the cache.

    Hidden entries are skipped. Links are followed, and each real folder is listed once.

    Args:
        on_error: called with the error for each folder that cannot be listed; that folder is skipped.

    Returns:
        Sorted paths relative to `folder`.

    Raises:
        OSError: if a folder cannot be listed and `on_error` is None.
    """
    return _Walk(folder, {}, on_error).images_below("", os.path.realpath(folder))


def images_by_class(folder: str | Path) -> dict[str, list[str]]:
    """List the images below each class folder as `find_images` does, taking the listings of unchanged folders from the cache.

    A folder that is reachable from several classes, through links, is listed once for each class.

    Returns:
        {name of a class folder: sorted paths of its images, relative to `folder`}, sorted by name.

    Raises:
        UserError: if the folder is missing, cannot be listed or has no class folders.
    """
    if not os.path.isdir(folder):
        near = nearest_path(folder, is_folder=True)
        remedy = f"did you mean {near}?" if near else "it should hold one folder of images per class"
        raise UserError(f"{folder} is not a folder; {remedy}")
    file = cache_file(folder)
    cached = _read_cache(file)
    walk = _Walk(folder, cached)
    try:
        class_folders = walk.subfolders("", os.path.realpath(folder))
        images = {name: walk.images_below(name, real_path) for name, real_path in class_folders}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    if not images:
        if loose := len(_split(walk.listings[""].images)):
            raise UserError(
                f"{folder} holds no class folders but {loose:,} image{'s' * (loose > 1)}; put the images of each class into a "
                "folder of its own there"
            )
        raise UserError(f"{folder} holds no class folders; it should hold one folder of images per class")
    if walk.listings != cached and sum(map(len, images.values())) >= MIN_CACHED_IMAGES:
        _write_cache(file, walk.listings)
    return images


def cache_file(folder: str | Path) -> Path:
    """Return the cache file of a folder, in $XDG_CACHE_HOME or ~/.cache, named after the folder's real path."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # the XDG specification says that relative paths are to be ignored
        cache = os.path.expanduser("~/.cache")
    digest = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
    return Path(cache, "shufflenetv2", f"{digest}.json.gz")


class _Walk:
    """A walk over the folders below `root` that lists only those whose cached listing is missing or out of date.

    Attributes:
        listings: {path relative to `root`: listing} of all folders visited.
    """

    def __init__(self, root: str | Path, cached: Mapping[str, Listing], on_error: OnError | None = None) -> None:
        self.listings: dict[str, Listing] = {}
        self._root, self._cached, self._on_error = root, cached, on_error
        self._start_ns = time.time_ns()
        self._devices_without_times = _devices_without_times()

    def images_below(self, folder: str, real_path: str) -> list[str]:
        images: list[str] = []
        visited: set[str] = set()
        stack = [(folder, real_path)]
        while stack:
            folder, real_path = stack.pop()
            if real_path in visited:  # a link to a parent folder, or to a folder that another link pointed to
                continue
            visited.add(real_path)
            stack += reversed(self.subfolders(folder, real_path))
            prefix = folder + os.sep if folder else ""
            images += [prefix + name for name in _split(self.listings[folder].images)]
        return sorted(images)

    def subfolders(self, folder: str, real_path: str) -> list[tuple[str, str]]:
        """List a folder and return its subfolders: path relative to the root, and real path."""
        path = os.path.join(self._root, folder)
        try:
            stamp = self._stamp(path)
            listing = self._cached.get(folder)
            if listing is None or not stamp or listing.stamp != stamp:
                listing = list_folder(path, stamp)
        except OSError as error:
            if self._on_error is None:
                raise
            self._on_error(error)
            listing = Listing("", "", "")
        self.listings[folder] = listing
        names = _split(listing.folders)
        if listing.stamp:  # then no subfolder is a link, and their real paths need no system call
            return [(os.path.join(folder, name), os.path.join(real_path, name)) for name in names]
        return [(os.path.join(folder, name), os.path.realpath(os.path.join(path, name))) for name in names]

    def _stamp(self, path: str) -> str:
        """Return the inode and times of a folder, or "" if they would not prove that its listing is still valid."""
        status = os.stat(path)
        if max(status.st_mtime_ns, status.st_ctime_ns) > self._start_ns - MIN_AGE_NS:
            return ""
        if status.st_dev in self._devices_without_times:
            return ""
        # tar and rsync set mtime back; no program can set ctime. The device number is left out, since it can change
        # at the next boot.
        return f"{status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"


def list_folder(path: str, stamp: str) -> Listing:
    """List one folder. The result has no stamp if the folder contains links to anything but images."""
    folders, images = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):  # the listing contains this information; no `stat` is needed
                folders.append(name)
            elif name.lower().endswith(SUFFIXES):
                images.append(name)
            elif entry.is_symlink():
                stamp = ""  # the target can become a folder, or disappear, without changing this folder's times
                if os.path.isdir(entry.path):
                    folders.append(name)
    return Listing(stamp, "/".join(sorted(folders)), "/".join(sorted(images)))


def _split(names: str) -> list[str]:
    return names.split("/") if names else []


def _devices_without_times() -> set[int]:
    """Return the device numbers of the mounted file systems without reliable times."""
    devices = set()
    with contextlib.suppress(OSError):
        for line in MOUNT_TABLE.read_text(errors="replace").splitlines():
            mount, _, file_system = line.partition(" - ")  # "36 35 0:98 / /data rw - fuse.s3fs s3fs rw"
            if file_system.startswith(FILE_SYSTEMS_WITHOUT_TIMES):
                major, minor = mount.split()[2].split(":")
                devices.add(os.makedev(int(major), int(minor)))
    return devices


def _read_cache(file: Path) -> dict[str, Listing]:
    with contextlib.suppress(Exception):  # missing, truncated or written by another program: list every folder
        compressed = read_regular_file(file, MAX_RECORD_BYTES)
        with gzip.open(io.BytesIO(compressed)) as archive:  # gzip verifies a checksum
            content = archive.read(MAX_RECORD_BYTES)
        cache_format, listings = json.loads(content)
        if cache_format == CACHE_FORMAT:
            return {folder: Listing(*map(str, fields)) for folder, fields in listings.items()}
    return {}


def _write_cache(file: Path, listings: dict[str, Listing]) -> None:
    """Write the cache file and remove the oldest ones. Errors are ignored: the next start only takes longer."""
    if not file.is_absolute():  # the user has no home directory
        return
    content = gzip.compress(json.dumps([CACHE_FORMAT, listings]).encode(), compresslevel=1)
    with contextlib.suppress(OSError, UserError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content, durable=False)
        for old in sorted(file.parent.glob("*.json.gz"), key=os.path.getmtime)[:-MAX_CACHE_FILES]:
            old.unlink(missing_ok=True)
