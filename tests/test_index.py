"""What is read from the index is what listing every folder would give."""

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

from shufflenetv2.data import DatasetError, FolderDataset, index
from shufflenetv2.data.images import IMAGE_SUFFIXES

Samples = tuple[list[str], list[str], list[int]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, which takes in small data sets and soon trusts a folder's times."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "FEWEST_IMAGES", 1)
    monkeypatch.setattr(index, "SETTLED_NS", 20_000_000)  # two ticks of the slowest kernels
    return tmp_path / "cache" / "shufflenetv2"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that are listed from now on, rather than known."""
    names: list[str] = []
    original = index._listed

    def recorded(path: str, stamp: str) -> index.Listing:
        names.append(Path(path).name)
        return original(path, stamp)

    monkeypatch.setattr(index, "_listed", recorded)
    return names


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two levels and more, with links to folders, to an image, to nothing and back up, and names of every kind."""
    root = tmp_path / "tree"
    add(
        root, "cat/1.jpg", "cat/deep/er/2.png", "cat/deep.jpg", "cat/album.jpg/3.JPEG", "dog/4.jpg", "dog/notes.txt",
        "dog/.hidden.jpg", "dog/.git/5.jpg", ".cache/6.jpg", "stray.jpg", "dog/ñ 7.webp", "dog/" + os.fsdecode(b"\xff.bmp"),
    )  # fmt: skip
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


def listed_plainly(root: Path) -> Samples:
    """The same by `os.walk`, which knows nothing of an index."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    paths, targets = [], []
    for label, name in enumerate(classes):
        found, visited = [], set()
        for where, folders, names in os.walk(root / name, followlinks=True):
            real = os.path.realpath(where)
            folders[:] = [] if real in visited else sorted(folder for folder in folders if not folder.startswith("."))
            if real not in visited:
                visited.add(real)
                found += [
                    os.path.join(os.path.relpath(where, root), file)
                    for file in names
                    if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES and not file.startswith(".")
                ]
        paths += sorted(found)
        targets += [label] * len(found)
    return classes, paths, targets


def test_the_index_gives_what_listing_everything_gives(tree: Path, listed: list[str], cache: Path) -> None:
    expected = listed_plainly(tree)
    assert len(expected[1]) == 10
    assert samples(tree) == expected
    assert len(list(cache.iterdir())) == 1
    assert "er" in listed
    listed.clear()
    assert samples(tree) == expected
    assert sorted(listed) == ["deep", "dog", "tree"]  # they hold links, and what those lead to may change without a trace


def replace_by_a_twin(root: Path) -> None:
    """Another folder by the same name, with the same time."""
    twin = root.parent / "twin"
    add(twin, "other.jpg")
    status = (root / "cat/deep/er").stat()
    os.utime(twin, ns=(status.st_atime_ns, status.st_mtime_ns))
    (root / "cat/deep/er").rename(root.parent / "away")
    twin.rename(root / "cat/deep/er")


def add_and_turn_back_the_time(root: Path) -> None:
    """As tar and rsync do."""
    status = (root / "cat/deep/er").stat()
    add(root, "cat/deep/er/new.jpg")
    os.utime(root / "cat/deep/er", ns=(status.st_atime_ns, status.st_mtime_ns))


def lead_elsewhere(root: Path) -> None:
    add(root.parent / "new", "10.jpg")
    (root / "owl").unlink()
    (root / "owl").symlink_to(root.parent / "new")


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image added": lambda root: add(root, "cat/deep/er/new.jpg"),
    "an image added and the folder's time turned back": add_and_turn_back_the_time,
    "an image removed": lambda root: (root / "cat/deep/er/2.png").unlink(),
    "an image renamed": lambda root: (root / "cat/deep/er/2.png").rename(root / "cat/deep/er/0.png"),
    "an image hidden": lambda root: (root / "cat/1.jpg").rename(root / "cat/.1.jpg"),
    "an image moved": lambda root: (root / "cat/1.jpg").rename(root / "dog/1.jpg"),
    "a file that becomes an image": lambda root: (root / "dog/notes.txt").rename(root / "dog/notes.tif"),
    "a folder added": lambda root: add(root, "cat/new/er/1.jpg"),
    "a folder removed": lambda root: shutil.rmtree(root / "cat/deep/er"),
    "a folder renamed": lambda root: (root / "cat/deep/er").rename(root / "cat/deep/est"),
    "a folder hidden": lambda root: (root / "cat/album.jpg").rename(root / "cat/.album.jpg"),
    "a folder replaced by another": replace_by_a_twin,
    "a class added": lambda root: add(root, "bee/1.jpg"),
    "a class removed": lambda root: shutil.rmtree(root / "cat"),
    "a class renamed": lambda root: (root / "cat").rename(root / "zebra"),
    "a link that leads elsewhere": lead_elsewhere,
    "an image added behind a link": lambda root: add(root.parent / "elsewhere", "new.jpg"),
    "an image removed deep behind a link": lambda root: (root.parent / "elsewhere/more/9.jpg").unlink(),
    "a link that leads nowhere any more": lambda root: (root.parent / "elsewhere").rename(root.parent / "gone"),
    "a folder where a link has long led to": lambda root: add(root.parent / "later", "1.jpg"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("wait", [settle, lambda: None], ids=["later", "at once"])
def test_every_change_is_noticed(tree: Path, change: Callable[[Path], object], wait: Callable[[], None]) -> None:
    before = samples(tree)
    change(tree)
    wait()
    assert samples(tree) == samples(tree) == listed_plainly(tree) != before


def test_new_links_that_lead_back_up_are_followed_once(tree: Path) -> None:
    before = samples(tree)
    (tree / "cat/deep/er/up").symlink_to(tree / "cat")
    (tree / "cat/deep/er/self").symlink_to("self")
    assert samples(tree) == samples(tree) == before


def test_only_what_has_changed_is_listed_again(tree: Path, listed: list[str]) -> None:
    samples(tree)
    add(tree, "cat/album.jpg/new.jpg")
    settle()
    for expected in (["album.jpg", "deep", "dog", "tree"], ["deep", "dog", "tree"]):
        listed.clear()
        samples(tree)
        assert sorted(listed) == expected


def test_a_folder_that_has_just_changed_is_not_trusted(
    tmp_path: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one tick of the clock it could change again, and keep its times."""
    monkeypatch.setattr(index, "SETTLED_NS", 3600 * 10**9)
    for number in range(30):
        add(tmp_path, f"tree/cat/{number}.jpg")
        listed.clear()
        assert samples(tmp_path / "tree") == listed_plainly(tmp_path / "tree")
        assert listed == ["tree", "cat"]
    settle()
    monkeypatch.setattr(index, "SETTLED_NS", 20_000_000)
    for expected in (["tree", "cat"], []):  # what was listed too early is listed once more
        listed.clear()
        samples(tmp_path / "tree")
        assert listed == expected


def test_file_systems_that_keep_no_times_are_listed_every_time(
    tree: Path, tmp_path: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tree.stat().st_dev
    mount = f"36 35 {os.major(device)}:{os.minor(device)} / /data rw,noatime master:1 - fuse.goofys bucket rw\n"
    (tmp_path / "mounts").write_text(f"35 1 0:0 / / rw - ext4 /dev/sda rw\n{mount}")
    monkeypatch.setattr(index, "MOUNTS", tmp_path / "mounts")
    samples(tree)
    everything = sorted(listed)
    listed.clear()
    assert samples(tree) == listed_plainly(tree)
    assert sorted(listed) == everything


def of_anyone(content: object) -> bytes:
    return gzip.compress(json.dumps(content).encode(), mtime=0)


@pytest.mark.parametrize(
    "damaged",
    [
        b"", b"not an index", pickle.dumps({"": ("", "", "")}), of_anyone(None), of_anyone([0, {}]),
        of_anyone([index.LAYOUT, []]), of_anyone([index.LAYOUT, {"": 1}]), of_anyone([index.LAYOUT, {"": ["", ""]}]),
        of_anyone([index.LAYOUT, {"cat": [1, 2, 3]}]), "cut short", "changed",
    ],
)  # fmt: skip
def test_a_damaged_index_is_replaced(tree: Path, listed: list[str], damaged: bytes | str) -> None:
    expected = samples(tree)
    file = index.index_file(tree)
    good = file.read_bytes()
    if damaged == "cut short":
        damaged = good[:-30]
    elif damaged == "changed":
        damaged = good[:-20] + bytes([good[-20] ^ 1]) + good[-19:]
    assert isinstance(damaged, bytes)
    file.write_bytes(damaged)
    listed.clear()
    assert samples(tree) == expected
    assert "er" in listed
    assert gzip.decompress(file.read_bytes()) == gzip.decompress(good)


def test_an_index_made_by_other_rules_is_not_used(tree: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = samples(tree)
    monkeypatch.setattr(index, "LAYOUT", [1, [".jpg"]])
    listed.clear()
    assert samples(tree) == expected
    assert "er" in listed


def test_a_cache_that_cannot_be_written_is_no_error(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert samples(tree) == samples(tree) == listed_plainly(tree)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    index.index_file(tree).mkdir(parents=True)
    assert samples(tree) == listed_plainly(tree)
    assert list(index.index_file(tree).parent.iterdir()) == [index.index_file(tree)]  # nothing half-written is left


def test_the_cache_is_where_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for setting in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", setting)
        assert index.index_file(tmp_path).parent == tmp_path / ".cache/shufflenetv2"


def test_folders_do_not_share_an_index_but_the_names_of_one_do(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "copy", symlinks=True)
    assert index.index_file(tree) != index.index_file(tmp_path / "copy")
    (tmp_path / "link").symlink_to(tree)
    assert index.index_file(tree) == index.index_file(tmp_path / "link")
    (tmp_path / "copy/cat/1.jpg").unlink()
    for _ in range(2):
        assert samples(tmp_path / "link") == samples(tree) == listed_plainly(tree)
        assert samples(tmp_path / "copy") == listed_plainly(tmp_path / "copy") != samples(tree)


def test_small_data_sets_leave_nothing_behind(tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FEWEST_IMAGES", 11)  # there are ten
    samples(tree)
    assert not cache.exists()


def test_the_oldest_indexes_make_way(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MOST_INDEXES", 2)
    for name in "abc":
        add(tmp_path / name, "cat/1.jpg")
        samples(tmp_path / name)
        settle()
    assert set(cache.iterdir()) == {index.index_file(tmp_path / name) for name in "bc"}


def test_many_may_read_and_write_it_at_once(tree: Path, cache: Path) -> None:
    expected = listed_plainly(tree)

    def start(number: int) -> Samples:
        if number % 3 == 0:
            index.index_file(tree).unlink(missing_ok=True)
        return samples(tree)

    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(start, range(60)))
    assert list(cache.iterdir()) in ([], [index.index_file(tree)])


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images would be missing otherwise, and nobody would know."""
    add(tmp_path, "tree/cat/1.jpg")
    monkeypatch.chdir(tmp_path / "tree/cat")
    for _ in range(20):  # to a path longer than any may be
        Path("n" * 250).mkdir()
        os.chdir("n" * 250)
    with pytest.raises(DatasetError, match=r"tree/cat/n+.* cannot be read: File name too long"):
        samples(tmp_path / "tree")
