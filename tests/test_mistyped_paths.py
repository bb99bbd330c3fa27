"""A refusal of a path that does not exist names the existing path that may be meant."""

import os
from pathlib import Path

import pytest

from shufflenetv2.export.images import image_paths
from shufflenetv2.files import nearest_path
from shufflenetv2.weights import weight_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working directory with a folder of images and the folders of two runs, one of them empty."""
    for name in ("digits/train", "models/mine", "models/other", "models/.hidden"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("models/mine/model.pkl", "models/mine/best.pkl", "models/mine/checkpoint-000020.pth.tar", "digits.zip"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "is_folder", "near"),
    [
        ("digist.zip", False, "digits.zip"),
        ("Digits", True, "digits"),
        ("modles/mien/modle.pkl", False, "models/mine/model.pkl"),  # every part is mistyped
        ("models/mine/best.pth", False, "models/mine/best.pkl"),
        ("models/../modles/mine", True, "models/../models/mine"),
        ("digits.zip", True, "digits"),  # it exists, and is no folder
        ("digist", True, "digits"),
        ("best.pkl", False, ""),  # two folders below
        ("mine", True, "models/mine"),
        ("models/best.pkl", False, "models/mine/best.pkl"),
        ("models/hidden", True, ""),
        ("flowers", True, ""),
        ("models/mine/model.pkl/x", False, ""),
        ("x" * 1000, False, ""),
    ],
)
def test_the_nearest_path_is_that_of_similar_spelling_and_of_the_same_kind(
    folder: Path, typed: str, is_folder: bool, near: str
) -> None:
    assert nearest_path(typed, is_folder=is_folder) == near
    assert nearest_path(folder / typed, is_folder=is_folder) == (near and str(folder / near))


def test_the_weight_files_of_a_run_begin_with_the_best_and_end_with_the_oldest(folder: Path) -> None:
    run = folder / "models/mine"
    (run / "checkpoint-000010.pth.tar").touch()
    os.utime(run / "checkpoint-000010.pth.tar", (0, 0))
    names = ["best.pkl", "model.pkl", "checkpoint-000020.pth.tar", "checkpoint-000010.pth.tar"]
    assert [path.name for path in weight_files(run)] == names
    assert weight_files(run.parent) == [run / "best.pkl"]
    assert weight_files(folder / "digits") == []


def test_mistyped_images_to_predict_are_left_out_with_a_proposal(folder: Path) -> None:
    warnings: list[str] = []
    assert image_paths(["digits/trian", "absent.jpg"], warnings.append) == ["absent.jpg"]
    assert warnings == ["digits/trian does not exist; did you mean digits/train?"]
    assert image_paths(["digits/trian"] * 100, warnings.append) == ["digits/trian"] * 100  # of a list: no search for each
