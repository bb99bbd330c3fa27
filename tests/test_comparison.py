"""Runs are ranked only where their difference in accuracy is larger than chance."""

import pytest

from shufflenetv2.report import Prediction, find_best
from shufflenetv2.report.comparison import mcnemar, wilson_interval


def predictions(right: str, folder: str = "") -> list[Prediction]:
    """Return predictions that are right where a text has a 1."""
    return [
        Prediction(position, f"{folder}{position}.jpg", "cat", "cat" if digit == "1" else "dog", 0.9, 0.9)
        for position, digit in enumerate(right)
    ]


def run(name: str, right: str) -> dict[str, object]:
    accuracy = right.count("1") / len(right)
    return {"name": name, "summary": {"top1": accuracy}, "interval": wilson_interval(accuracy, len(right))}


@pytest.mark.parametrize(
    ("accuracy", "images", "low", "high"),
    [(0.9, 100, 0.8256, 0.9448), (1.0, 10, 0.7225, 1.0), (0.0, 10, 0.0, 0.2775), (0.5, 50_000, 0.4956, 0.5044)],
)
def test_the_interval_is_that_of_wilson(accuracy: float, images: int, low: float, high: float) -> None:
    assert wilson_interval(accuracy, images) == pytest.approx([low, high], abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        ("1110", "1110", 1.0),
        ("111111" + "1" * 90, "000000" + "1" * 90, 2 / 64),
        ("111110" + "1" * 90, "000001" + "1" * 90, 14 / 64),
        ("01" * 3000, "10" * 3000, 1.0),
        ("1" * 9000, "0" * 9000, 0.0),
    ],
)
def test_images_that_one_of_two_runs_classifies_correctly_decide(first: str, second: str, p: float) -> None:
    assert mcnemar(predictions(first), predictions(second)) == pytest.approx(p)
    assert mcnemar(predictions(second), predictions(first)[::-1]) == pytest.approx(p)


def test_predictions_for_other_images_are_not_paired() -> None:
    assert mcnemar(predictions("11"), predictions("11", folder="other/")) is None
    assert mcnemar(predictions("11"), predictions("111")) is None
    assert mcnemar([], []) is None


@pytest.mark.parametrize(
    ("rights", "folders", "best", "sentence"),
    [
        # Three images decide.
        (
            ["1" * 97 + "000", "1" * 94 + "000000"],
            "aa",
            None,
            "may be chance (McNemar's exact test on the same images, p = 0.2",
        ),
        (["1" * 80 + "0" * 20, "1" * 97 + "000"], "aa", 1, "of run 1 is higher by more than chance (McNemar's exact test"),
        # Better than one of the others only
        (["1" * 80 + "0" * 20, "1" * 97 + "000", "1" * 96 + "0000"], "aaa", None, "may be chance"),
        # Of other images the intervals count.
        (["1" * 90 + "0" * 10, "1" * 98 + "00"], "ab", None, "may be chance (their 95% intervals)"),
        (["1" * 70 + "0" * 30, "1" * 98 + "00"], "ab", 1, "by more than chance (their 95% intervals)"),
    ],
)
def test_a_run_is_the_best_if_it_beats_each_of_the_others_by_more_than_chance(
    rights: list[str], folders: str, best: int | None, sentence: str
) -> None:
    runs = [run(f"run {number}", right) for number, right in enumerate(rights)]
    rows = [predictions(right, folder) for right, folder in zip(rights, folders, strict=True)]
    number, verdict = find_best(runs, rows)
    assert number == best
    assert sentence in verdict


def test_runs_of_the_same_name_are_told_apart_by_their_folders() -> None:
    rights = ["1" * 80 + "0" * 20, "1" * 97 + "000"]
    runs = [run("run", right) | {"folder": folder} for right, folder in zip(rights, ("a/run", "b/run"), strict=True)]
    assert "of b/run is higher" in find_best(runs, [predictions(right) for right in rights])[1]


def test_a_run_without_a_result_is_not_compared() -> None:
    waiting: dict[str, object] = {"name": "waiting", "summary": {}, "interval": None}
    assert find_best([run("a", "1110"), waiting], [predictions("1110"), []]) == (None, "")
