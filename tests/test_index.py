"""The cached listing of a data set gives what listing every folder would give, after every kind of change."""

import gzip
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shufflenetv2.data import FolderDataset, index
from shufflenetv2.data.images import IMAGE_SUFFIXES
from shufflenetv2.errors import UserError

Samples = tuple[list[str], list[str], list[int]]  # class names, paths, targets


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache directory that also accepts small data sets and trusts a folder's times after 20 ms."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "MIN_CACHED_IMAGES", 1)
    monkeypatch.setattr(index, "MIN_AGE_NS", 20_000_000)  # two ticks of the slowest kernels
    return tmp_path / "cache" / "shufflenetv2"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the folders that are listed, as opposed to read from the cache."""
    names: list[str] = []
    list_folder = index.list_folder

    def record(path: str, stamp: str) -> index.Listing:
        names.append(Path(path).name)
        return list_folder(path, stamp)

    monkeypatch.setattr(index, "list_folder", record)
    return names


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make nested folders with names of every kind and links to folders, an image, a missing target and a parent."""
    root = tmp_path / "tree"
    add(
        root,
        "cat/1.jpg",
        "cat/deep/er/2.png",
        "cat/deep.jpg",
        "cat/album.jpg/3.JPEG",
        "dog/4.jpg",
        "dog/notes.txt",
        "dog/.hidden.jpg",
        "dog/.git/5.jpg",
        ".cache/6.jpg",
        "stray.jpg",
        "dog/ñ 7.webp",
        "dog/" + os.fsdecode(b"\xff.bmp"),
    )
    add(tmp_path / "elsewhere", "8.jpg", "more/9.jpg")
    (root / "owl").symlink_to(tmp_path / "elsewhere")
    (root / "cat/deep/loop").symlink_to(root / "cat")
    (root / "cat/deep/again").symlink_to(root / "cat/album.jpg")
    (root / "cat/deep/link.jpg").symlink_to(root / "dog/4.jpg")
    (root / "dog/later").symlink_to(tmp_path / "later")
    settle()
    return root


def add(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def settle() -> None:
    time.sleep(0.03)


def samples(root: Path) -> Samples:
    dataset = FolderDataset(root)
    return dataset.class_names, dataset.paths, dataset.targets.tolist()


def walk_below(folder: Path) -> list[str]:
    """List the images below a folder with `os.walk`: relative paths, sorted."""
    images, visited = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real_path = os.path.realpath(parent)
        if real_path in visited:
            folders.clear()
            continue
        visited.add(real_path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images += [
            os.path.normpath(os.path.join(os.path.relpath(parent, folder), name))
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return sorted(images)


def walked(root: Path) -> Samples:
    """Return what `samples` should return."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    images = [sorted(os.path.join(name, path) for path in walk_below(root / name)) for name in classes]
    paths = [path for paths in images for path in paths]
    return classes, paths, [label for label, paths in enumerate(images) for _ in paths]


def test_the_cache_gives_what_listing_every_folder_gives(tree: Path, listed: list[str], cache: Path) -> None:
    expected = walked(tree)
    assert len(expected[1]) == 10
    assert samples(tree) == expected
    assert len(list(cache.iterdir())) == 1
    assert "er" in listed
    listed.clear()
    assert samples(tree) == expected
    assert sorted(listed) == ["deep", "dog", "tree"]  # they hold links, whose targets can change without a trace


def test_images_without_classes_are_found_by_the_same_walk(tree: Path, cache: Path) -> None:
    assert index.find_images(tree) == walk_below(tree)
    assert not cache.exists()
    errors: list[OSError] = []
    assert index.find_images(tree / "absent", errors.append) == []
    assert [error.filename for error in errors] == [f"{tree}/absent/"]


def replace_folder_keeping_its_time(root: Path) -> None:
    replacement = root.parent / "replacement"
    add(replacement, "other.jpg")
    status = (root / "cat/deep/er").stat()
    os.utime(replacement, ns=(status.st_atime_ns, status.st_mtime_ns))
    (root / "cat/deep/er").rename(root.parent / "away")
    replacement.rename(root / "cat/deep/er")


def add_and_set_back_the_time(root: Path) -> None:
    """Change a folder as tar and rsync do."""
    status = (root / "cat/deep/er").stat()
    add(root, "cat/deep/er/new.jpg")
    os.utime(root / "cat/deep/er", ns=(status.st_atime_ns, status.st_mtime_ns))


def change_link(root: Path) -> None:
    add(root.parent / "new", "10.jpg")
    (root / "owl").unlink()
    (root / "owl").symlink_to(root.parent / "new")


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image added": lambda root: add(root, "cat/deep/er/new.jpg"),
    "an image added and the folder's time set back": add_and_set_back_the_time,
    "an image removed": lambda root: (root / "cat/deep/er/2.png").unlink(),
    "an image renamed": lambda root: (root / "cat/deep/er/2.png").rename(root / "cat/deep/er/0.png"),
    "an image hidden": lambda root: (root / "cat/1.jpg").rename(root / "cat/.1.jpg"),
    "an image moved": lambda root: (root / "cat/1.jpg").rename(root / "dog/1.jpg"),
    "a file given an image suffix": lambda root: (root / "dog/notes.txt").rename(root / "dog/notes.tif"),
    "a folder added": lambda root: add(root, "cat/new/er/1.jpg"),
    "a folder removed": lambda root: shutil.rmtree(root / "cat/deep/er"),
    "a folder renamed": lambda root: (root / "cat/deep/er").rename(root / "cat/deep/est"),
    "a folder hidden": lambda root: (root / "cat/album.jpg").rename(root / "cat/.album.jpg"),
    "a folder replaced by another": replace_folder_keeping_its_time,
    "a class added": lambda root: add(root, "bee/1.jpg"),
    "a class removed": lambda root: shutil.rmtree(root / "cat"),
    "a class renamed": lambda root: (root / "cat").rename(root / "zebra"),
    "a link changed": change_link,
    "an image added behind a link": lambda root: add(root.parent / "elsewhere", "new.jpg"),
    "an image removed deep behind a link": lambda root: (root.parent / "elsewhere/more/9.jpg").unlink(),
    "the target of a link removed": lambda root: (root.parent / "elsewhere").rename(root.parent / "gone"),
    "the target of a link created": lambda root: add(root.parent / "later", "1.jpg"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("wait", [settle, lambda: None], ids=["later", "at once"])
def test_every_change_is_noticed(tree: Path, change: Callable[[Path], object], wait: Callable[[], None]) -> None:
    before = samples(tree)
    change(tree)
    wait()
    assert samples(tree) == samples(tree) == walked(tree) != before


def test_new_links_to_a_parent_folder_are_followed_once(tree: Path) -> None:
    before = samples(tree)
    (tree / "cat/deep/er/up").symlink_to(tree / "cat")
    (tree / "cat/deep/er/self").symlink_to("self")
    assert samples(tree) == samples(tree) == before


def test_only_changed_folders_are_listed_again(tree: Path, listed: list[str]) -> None:
    samples(tree)
    add(tree, "cat/album.jpg/new.jpg")
    settle()
    for expected in (["album.jpg", "deep", "dog", "tree"], ["deep", "dog", "tree"]):
        listed.clear()
        samples(tree)
        assert sorted(listed) == expected


def test_a_recently_changed_folder_is_not_trusted(tmp_path: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one tick of the clock the folder could change again without changing its times."""
    monkeypatch.setattr(index, "MIN_AGE_NS", 3600 * 10**9)
    for number in range(30):
        add(tmp_path, f"tree/cat/{number}.jpg")
        listed.clear()
        assert samples(tmp_path / "tree") == walked(tmp_path / "tree")
        assert listed == ["tree", "cat"]
    settle()
    monkeypatch.setattr(index, "MIN_AGE_NS", 20_000_000)
    for expected in (["tree", "cat"], []):  # a folder that was listed too early is listed once more
        listed.clear()
        samples(tmp_path / "tree")
        assert listed == expected


def test_folders_on_file_systems_without_times_are_always_listed(
    tree: Path, tmp_path: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tree.stat().st_dev
    mount = f"36 35 {os.major(device)}:{os.minor(device)} / /data rw,noatime master:1 - fuse.goofys bucket rw\n"
    (tmp_path / "mounts").write_text(f"35 1 0:0 / / rw - ext4 /dev/sda rw\n{mount}")
    monkeypatch.setattr(index, "MOUNT_TABLE", tmp_path / "mounts")
    samples(tree)
    all_folders = sorted(listed)
    listed.clear()
    assert samples(tree) == walked(tree)
    assert sorted(listed) == all_folders


def compressed(content: object) -> bytes:
    return gzip.compress(json.dumps(content).encode(), mtime=0)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"not a cache file",
        pickle.dumps({"": ("", "", "")}),
        compressed(None),
        compressed([0, {}]),
        compressed([index.CACHE_FORMAT, []]),
        compressed([index.CACHE_FORMAT, {"": 1}]),
        compressed([index.CACHE_FORMAT, {"": ["", ""]}]),
        compressed([index.CACHE_FORMAT, {"cat": [1, 2, 3]}]),
        gzip.compress(b"[" * 100_000),
        "truncated",
        "one bit changed",
    ],
)
def test_a_damaged_cache_file_is_replaced(tree: Path, listed: list[str], damaged: bytes | str) -> None:
    expected = samples(tree)
    file = index.cache_file(tree)
    intact = file.read_bytes()
    if damaged == "truncated":
        damaged = intact[:-30]
    elif damaged == "one bit changed":
        damaged = intact[:-20] + bytes([intact[-20] ^ 1]) + intact[-19:]
    assert isinstance(damaged, bytes)
    file.write_bytes(damaged)
    listed.clear()
    assert samples(tree) == expected
    assert "er" in listed
    assert gzip.decompress(file.read_bytes()) == gzip.decompress(intact)


def test_a_cache_file_made_for_other_suffixes_is_not_used(
    tree: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = samples(tree)
    monkeypatch.setattr(index, "CACHE_FORMAT", [1, [".jpg"]])
    listed.clear()
    assert samples(tree) == expected
    assert "er" in listed


def test_a_cache_that_cannot_be_written_is_no_error(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert samples(tree) == samples(tree) == walked(tree)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index.cache_file(tree).mkdir(parents=True)
    assert samples(tree) == walked(tree)
    assert list(index.cache_file(tree).parent.iterdir()) == [index.cache_file(tree)]  # no temporary file is left


def test_the_cache_is_in_the_home_directory_unless_xdg_names_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for setting in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", setting)
        assert index.cache_file(tmp_path).parent == tmp_path / ".cache/shufflenetv2"


def test_copies_have_their_own_cache_file_and_links_share_one(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "copy", symlinks=True)
    assert index.cache_file(tree) != index.cache_file(tmp_path / "copy")
    (tmp_path / "link").symlink_to(tree)
    assert index.cache_file(tree) == index.cache_file(tmp_path / "link")
    (tmp_path / "copy/cat/1.jpg").unlink()
    for _ in range(2):
        assert samples(tmp_path / "link") == samples(tree) == walked(tree)
        assert samples(tmp_path / "copy") == walked(tmp_path / "copy") != samples(tree)


def test_small_data_sets_are_not_cached(tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MIN_CACHED_IMAGES", 11)  # there are ten
    samples(tree)
    assert not cache.exists()


def test_the_oldest_cache_files_are_removed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_CACHE_FILES", 2)
    for name in "abc":
        add(tmp_path / name, "cat/1.jpg")
        samples(tmp_path / name)
        settle()
    assert set(cache.iterdir()) == {index.cache_file(tmp_path / name) for name in "bc"}


def test_many_processes_can_read_and_write_the_cache_at_once(tree: Path, cache: Path) -> None:
    expected = walked(tree)

    def start(number: int) -> Samples:
        if number % 3 == 0:
            index.cache_file(tree).unlink(missing_ok=True)
        return samples(tree)

    with ThreadPoolExecutor(8) as pool:
        assert all(result == expected for result in pool.map(start, range(60)))
    assert list(cache.iterdir()) in ([], [index.cache_file(tree)])


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its images would be missing without notice."""
    add(tmp_path, "tree/cat/1.jpg")
    monkeypatch.chdir(tmp_path / "tree/cat")
    for _ in range(20):  # a path longer than the file system allows
        Path("n" * 250).mkdir()
        os.chdir("n" * 250)
    with pytest.raises(UserError, match=r"tree/cat/n+.* cannot be read: File name too long"):
        samples(tmp_path / "tree")
