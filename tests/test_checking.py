"""`shufflenetv2 check` finds what would disturb a training; it moves files only with --fix."""

import csv
import json
import shutil
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from shufflenetv2.data.similarity import MAX_DISTANCE, close_pairs, count_bits, signature, similar_pairs
from tests.support import Run, photograph


@pytest.fixture
def dirty(tmp_path: Path, photographs: Path) -> Path:
    """Make a folder with train/ and val/ that has one case of everything that the command finds."""
    train, val = tmp_path / "data" / "train", tmp_path / "data" / "val"
    shutil.copytree(photographs, train)
    for name in ("cat", "dog", "cow"):
        (val / name).mkdir(parents=True)
    for number, name in enumerate(("cat", "dog", "cow")):
        photograph(120, 100, seed=100 + number).save(val / name / "val.jpg", quality=95)
    (train / "cat" / "truncated.jpg").write_bytes((train / "cat" / "0.jpg").read_bytes()[:200])
    (train / "cat" / "page.jpg").write_text("<!DOCTYPE html>")
    (train / "cat" / "missing.jpg").symlink_to("nowhere")
    photograph(20, 18, seed=50).save(train / "cat" / "tiny.png")
    photograph(90, 80, seed=51).save(train / "cat" / "51.jpg", format="PNG")
    photograph(90, 80, seed=52).save(train / "cat" / "download", format="JPEG")
    photograph(90, 80, seed=53).save(train / "loose.jpg")
    shutil.copy(train / "dog" / "1.jpg", train / "dog" / "same.jpg")
    shutil.copy(train / "dog" / "2.jpg", train / "owl" / "other class.jpg")
    shutil.copy(train / "dog" / "3.jpg", val / "dog" / "3.jpg")
    with Image.open(train / "owl" / "5.jpg") as image:
        image.reduce(2).save(val / "cow" / "scaled.jpg")
    return tmp_path / "data"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_clean_folder_has_no_findings(photographs: Path, command: Run) -> None:
    assert command("check", photographs) == (0, "21 training images in 3 classes\nnothing was found\n", "")


def test_everything_that_would_disturb_a_training_is_found_and_nothing_is_changed(dirty: Path, command: Run) -> None:
    before = files(dirty)
    status, output, _ = command("check", dirty, "--json", "--workers", "3")
    assert status == 1
    found = json.loads(output)
    names = {
        kind: [[path for _, path in finding["images"]] for finding in findings] for kind, findings in found["findings"].items()
    }
    assert names == {
        "unreadable": [["cat/missing.jpg"]],
        "damaged": [["cat/page.jpg"], ["cat/truncated.jpg"]],
        "huge": [],
        "tiny": [["cat/tiny.png"]],
        "wrong_suffix": [["cat/51.jpg"]],
        "ignored": [["loose.jpg"], ["cat/download"]],
        "copies": [["dog/1.jpg", "dog/same.jpg"], ["dog/2.jpg", "owl/other class.jpg"]],
        "shared": [["dog/3.jpg", "dog/3.jpg"]],
        "near_copies": [],
        "near_shared": [["owl/5.jpg", "cow/scaled.jpg"]],
        "classes": [[], []],
    }
    assert found["counts"] == {kind: len(findings) for kind, findings in names.items()}
    assert "in different classes: dog, owl" in found["findings"]["copies"][1]["detail"]
    assert [finding["detail"] for finding in found["findings"]["classes"]] == [
        "owl is only in training",
        "cow is only in validation",
    ]
    assert found["images"]["validation"] == {"cat": 1, "cow": 2, "dog": 2}
    assert files(dirty) == before


def test_the_text_and_the_page_name_the_files(dirty: Path, tmp_path: Path, command: Run) -> None:
    shutil.copy(dirty / "train/dog/1.jpg", dirty / "train/dog/<script>alert(1)</script>.jpg".replace("/s", "_s"))
    status, output, _ = command("check", dirty / "train", "--val-dir", dirty / "val", "--html", "page.html")
    assert status == 1
    assert f"{dirty}/train/cat/page.jpg: is not a readable image" in output
    assert f"{dirty}/train/cat/tiny.png: 20 x 18 pixels, less than 32 on the short side" in output
    remedy = "--fix DIR moves 6 files away: what cannot be decoded, and all but one of the copies within a class. "
    assert output.splitlines()[-1].startswith(remedy)
    page = (tmp_path / "page.html").read_text()
    assert remedy in page
    assert f"<li>{dirty}/train/cat/page.jpg: is not a readable image" in page
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;_script&gt;.jpg" in page
    assert f"{dirty}/val/cow/scaled.jpg" in page
    assert page.count("data:image/jpeg;base64,") >= 8


def test_fix_moves_bad_files_and_copies_to_its_folder_and_a_second_check_finds_only_the_rest(
    dirty: Path, tmp_path: Path, command: Run
) -> None:
    before = files(dirty)
    status, _, errors = command("check", dirty, "--fix", "aside")
    assert (status, errors) == (1, "5 files were moved to aside; aside/moved.csv says where from\n")
    moved = {"cat/missing.jpg", "cat/page.jpg", "cat/truncated.jpg", "dog/3.jpg", "dog/same.jpg"}
    with open(tmp_path / "aside" / "moved.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["from"] for row in rows} == {str(dirty / "train" / path) for path in moved}
    assert not any(Path(row["from"]).is_symlink() or Path(row["from"]).exists() for row in rows)
    assert all((tmp_path / row["to"]).is_symlink() or (tmp_path / row["to"]).is_file() for row in rows)
    assert {name: content for name, content in before.items() if name.removeprefix("train/") not in moved} == files(dirty)
    counts = json.loads(command("check", dirty, "--json")[1])["counts"]
    assert {kind: n for kind, n in counts.items() if n} == {
        "tiny": 1, "wrong_suffix": 1, "ignored": 2, "copies": 1, "near_shared": 1, "classes": 2,
    }  # fmt: skip


def test_mistakes_get_one_line(photographs: Path, tmp_path: Path, command: Run) -> None:
    for arguments, message in (
        (("absent",), "absent is not a folder"),
        ((photographs, "--val-dir", photographs), "is the training folder; every image would be in both"),
        ((photographs, "--fix", photographs / "aside"), "and its files would stay part of it; name a folder outside"),
    ):
        status, _, errors = command("check", *arguments)
        assert (status, errors.count("\n")) == (2, 1)
        assert message in errors


# ---- images that look alike


def test_changed_copies_of_photographs_are_alike_and_different_photographs_are_not() -> None:
    originals = [np.asarray(photograph(200 + 7 * seed, 180, seed))[:, :, ::-1].copy() for seed in range(20)]
    changed = []
    for pixels in originals:
        half = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        decoded = cv2.imdecode(cv2.imencode(".jpg", half, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
        assert decoded is not None
        changed.append(np.clip(decoded * 0.9 + 5, 0, 255).astype(np.uint8))
    pairs = similar_pairs([signature(pixels) for pixels in (*originals, *changed)], MAX_DISTANCE)
    assert pairs == [(number, number + 20) for number in range(20)]


def test_images_of_one_colour_are_not_alike() -> None:
    assert similar_pairs([signature(np.full((50, 50, 3), value, np.uint8)) for value in (0, 0, 200)], 0) == []


@pytest.mark.parametrize("max_distance", [0, 1, 6])
def test_the_search_for_close_hashes_finds_what_comparing_all_pairs_finds(max_distance: int) -> None:
    rng = np.random.default_rng(max_distance)
    hashes = rng.integers(0, 2**64, 60, dtype=np.uint64)
    for flips in range(9):  # copies of each hash with up to 8 other bits
        masks = [sum(1 << int(bit) for bit in rng.choice(64, flips, replace=False)) for _ in range(60)]
        hashes = np.concatenate((hashes, hashes[:60] ^ np.array(masks, np.uint64)))
    pairs = np.array(list(combinations(range(len(hashes)), 2)))
    bits = np.array([int(a ^ b).bit_count() for a, b in hashes[pairs]])
    assert count_bits(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).tolist() == bits.tolist()
    assert close_pairs(hashes, max_distance).tolist() == pairs[bits <= max_distance].tolist()
