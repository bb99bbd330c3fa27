"""The report of a run shows the content of its files, with any names in them, and works in a browser without any request."""

import json
import logging
import math
import os
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from shufflenetv2.data import Digits
from shufflenetv2.engine import Hook
from shufflenetv2.errors import UserError
from shufflenetv2.report import Prediction, ReportPage, find_log_folder, write_page
from shufflenetv2.report.series import calibration
from tests.browser import CHROMIUM, Browser, chromium
from tests.runs import END, ENVIRONMENT, START, write_run
from tests.support import SHORT, Run, Train

HOSTILE = [
    "</script><script>window.attack = 1</script>", '"><img src=x onerror="window.attack = 2">', "=1+1", "__proto__", "猫 🐱",
    "a" * 200, "<!--", "", "{{7*7}}", "c\nd",
]  # fmt: skip


def read_data(page: Path) -> list[dict[str, Any]]:
    """Return the data of the runs on a page."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert match
    runs: list[dict[str, Any]] = json.loads(match[1])["runs"]
    return runs


def collect(folder: Path) -> dict[str, Any]:
    return ReportPage(folder, Digits("train"), Digits("val")).collect()


# ---- what the page says


def test_the_page_shows_the_result_and_how_the_run_differs_from_the_recipe(tmp_path: Path) -> None:
    data = collect(write_run(tmp_path / "mixed", options={"mixup": "0.2"}))
    assert (data["state"], data["iteration"], data["total_iters"]) == ("finished", 400, 400)
    assert data["summary"]["top1"] == pytest.approx(0.9, abs=0.01)
    assert ["mixup", "0.2", "0.0"] in data["options"]
    assert ["momentum", "0.9", "0.9"] not in data["options"]
    assert data["curves"]["test"]["top1_error"][-1] == [400, pytest.approx(0.1)]
    assert data["model"] == "ShuffleNetV2 0.5x at 32 x 32 pixels: 352,032 parameters, 0.8 M mult-adds"
    assert data["layers"].startswith("=====\nLayer (type:depth-idx)")
    assert data["layers"].endswith("Total params: 352,042\n=====")
    assert sum(data["train_counts"]) == 1438
    assert data["speed"] == pytest.approx(
        {
            "duration": 7200,
            "images_per_second": 640,
            "iteration_time": 0.1,
            "waiting": 0.1,
            "memory_mb": None,
            "validation_time": 4,
        },
    )
    assert any("export models/mixed/best.pkl" in command for _, command in data["next"])


def test_the_images_shown_are_the_most_confident_mistakes_and_the_least_certain(tmp_path: Path) -> None:
    data = collect(write_run(tmp_path))
    mistakes = [data["images"][number] for number in data["mistakes"]]
    assert [image[0] for image in mistakes[:3]] == ["digits/val/0", "digits/val/10", "digits/val/20"]
    assert all(image[2] == (image[1] + 1) % 10 for image in mistakes)
    assert [image[4] for image in mistakes] == sorted(image[4] for image in mistakes)
    uncertain = [data["images"][number] for number in data["uncertain"]]
    assert uncertain[0][0] == "digits/val/358"
    assert all(image[5].startswith("data:image/png;base64,") for image in mistakes + uncertain)
    cells = {(label, guess) for _, label, guess, *_ in data["images"]}
    assert cells == {(label, guess) for label, guess, _ in data["confusion"]}  # each cell has an image to show


def test_calibration_compares_probabilities_with_accuracy(tmp_path: Path) -> None:
    bins = collect(write_run(tmp_path))["calibration"]
    assert sum(count for _, _, count in bins) == 359
    assert all(accuracy == pytest.approx(0.9, abs=0.05) for _, accuracy, _ in bins)  # of the fixture, at any probability
    assert [probability for probability, _, _ in bins] == sorted(probability for probability, _, _ in bins)


def test_calibration_of_numbers_that_are_no_probabilities_is_that_of_the_nearest_ones() -> None:
    rows = [Prediction(0, "0.jpg", "cat", "cat", value, value) for value in (math.nan, math.inf, -math.inf, 1e308, 0.55)]
    assert [row[0] for row in calibration(rows)] == [0, 0.55, 1]


def test_a_run_that_ended_in_an_error_says_why(tmp_path: Path) -> None:
    end = END | {"iteration": 222, "reason": "error: D/cat/7.jpg is not a readable image; remove it"}
    data = collect(write_run(tmp_path, sessions=[START, end]))
    assert (data["state"], data["reason"]) == ("failed", "D/cat/7.jpg is not a readable image; remove it")


def test_interruptions_and_their_cost_are_counted(tmp_path: Path) -> None:
    """Killed after iteration 180 according to the log, continued from 150, stopped by a signal, continued without a loss."""
    sessions = [
        START | {"time": "2026-11-19T10:00:00+00:00"},  # of an earlier run in the folder
        START,
        START | {"time": "2026-11-20T11:00:00+00:00", "iteration": 150},
        END | {"time": "2026-11-20T11:30:00+00:00", "iteration": 300, "reason": "stopped by SIGTERM"},
        START | {"time": "2026-11-20T11:40:00+00:00", "iteration": 300},
        END,
    ]
    folder = write_run(tmp_path, sessions=sessions)
    times = ["2026-11-20T10:00:00+00:00", "2026-11-20T10:50:00+00:00", "2026-11-20T11:10:00+00:00"]
    texts = [f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M:%S}" for time in times]
    lines = zip(texts, (20, 180, 170), strict=True)
    (folder / "train.log").write_text("".join(f"[{time}] TRAIN Iter {iteration}: lr = 0.1\n" for time, iteration in lines))
    data = collect(folder)
    assert [(entry["first"], entry["last"], entry["repeated"], entry["pause"]) for entry in data["sessions"]] == [
        (0, 180, 0, 0), (150, 300, 30, 600), (300, 400, 0, 600),
    ]  # fmt: skip
    assert data["speed"]["duration"] == (50 + 30 + 20) * 60


@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "summary.json", "predictions.csv", "sessions.jsonl", "options.yaml", "train.log"]
)
def test_a_missing_or_damaged_file_leaves_out_what_it_says(tmp_path: Path, name: str, damage: str) -> None:
    path = write_run(tmp_path) / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[: len(whole) * 2 // 3] if damage == "cut" else b"")
    page = ReportPage(tmp_path, Digits("train"), Digits("val")).write()
    (data,) = read_data(page)
    assert name == "options.yaml" or data["total_iters"] == 400


def test_without_the_data_set_the_images_of_the_existing_page_are_kept(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (before,) = read_data(ReportPage(folder, Digits("train"), Digits("val")).write())
    (after,) = read_data(ReportPage(folder).write())
    assert after["images"] == before["images"]
    assert after["train_counts"] == before["train_counts"]


def test_a_page_of_a_thousand_classes_stays_small(tmp_path: Path) -> None:
    classes, images = 1_000, 30_000
    row = {"support": 30, "predicted": 30, "correct": 15, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    names = [f"n{label:08d} great white shark" for label in range(classes)]
    guesses = [index * 7919 % classes if index % 2 else index // 30 for index in range(images)]
    lines = [
        f"{names[index // 30]}/{index:08d}.JPEG,{names[index // 30]},{names[guesses[index]]},0.5,0.1" for index in range(images)
    ]
    (tmp_path / "predictions.csv").write_text("\n".join(["image,label,prediction,probability,label_probability", *lines]))
    confusion = [[index // 30, guesses[index], 1] for index in range(images)]
    summary = {"classes": [{"name": name} | row for name in names], "confusion": confusion, "images": images, "top1": 0.5}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert ReportPage(tmp_path).write().stat().st_size < 1_000_000


def test_a_page_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "report.html").mkdir()
    page = ReportPage(tmp_path)
    with caplog.at_level(logging.INFO, "shufflenetv2"):
        page.update()
        page.update()
    (message,) = [entry.getMessage() for entry in caplog.records if entry.name == "shufflenetv2"]
    assert "report.html cannot be written" in message


# ---- in a training


class Fail(Hook):
    """Hook that ends a run with an error after its third iteration."""

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        if iteration == 3:
            raise UserError("the disk is on fire", status=1)


def test_a_training_writes_the_page_at_each_validation_and_at_its_end(tmp_path: Path, train_here: Train) -> None:
    options = [*SHORT, "--batch-size", "64", "--total-iters", "4", "--val-interval", "2"]
    assert train_here(*options, "--hook", "tests.test_report:Fail").returncode == 1
    (data,) = read_data(tmp_path / "logs/models/report.html")
    assert (data["state"], data["reason"], data["total_iters"]) == ("failed", "the disk is on fire", 4)
    assert [row["iteration"] for row in data["validations"]] == [2]
    assert len(data["mistakes"]) > 0
    assert train_here(*options).returncode == 0
    (data,) = read_data(tmp_path / "logs/models/report.html")
    assert (data["state"], data["iteration"], data["summary"]["final"]) == ("finished", 4, True)
    assert [row["iteration"] for row in data["validations"] if row["kind"] == "test"] == [2, 4]
    assert sum(data["train_counts"]) == 1438


def test_while_a_run_goes_on_the_page_says_so(tmp_path: Path) -> None:
    now = datetime.now().astimezone()
    folder = write_run(tmp_path, sessions=[START | {"time": (now - timedelta(minutes=30)).isoformat()}])
    log = folder / "train.log"
    log.write_text(f"[{now:%Y-%m-%d %H:%M:%S}] TRAIN Iter 400: lr = 0.1\n")
    assert collect(folder)["state"] == "running"
    earlier = now - timedelta(days=2)
    log.write_text(f"[{earlier:%Y-%m-%d %H:%M:%S}] TRAIN Iter 400: lr = 0.1\n")
    (folder / "sessions.jsonl").write_text(json.dumps(START | {"time": (earlier - timedelta(hours=1)).isoformat()}))
    data = collect(folder)
    assert (data["state"], data["reason"]) == ("stopped", "no sign of life since the last line of the log")


def test_images_that_were_left_out_are_listed(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "bad_images.csv").write_text("training,'=cat/1.jpg,'=cat/1.jpg is not a readable image\n" * 150)
    data = collect(tmp_path)
    assert data["bad_images"] == [["training", "=cat/1.jpg", "=cat/1.jpg is not a readable image"]] * 100
    assert data["bad_image_count"] == 150


# ---- the command


def test_the_command_writes_the_page_of_a_run_again(tmp_path: Path, command: Run) -> None:
    folder = write_run(tmp_path / "logs" / "digits")
    assert command("report", "logs/digits") == (0, "logs/digits/report.html\n", "")
    (data,) = read_data(folder / "report.html")
    assert data["images"][0][5]  # the data set is found by the options of the run
    assert command("report", tmp_path / "models/digits", "--out", "page.html") == (0, "page.html\n", "")
    assert read_data(tmp_path / "page.html")[0]["name"] == "digits"


def test_the_command_compares_runs(tmp_path: Path, command: Run) -> None:
    write_run(tmp_path / "a", accuracy=0.9)
    write_run(tmp_path / "b", accuracy=0.8, options={"mixup": "0.2"})
    status, output, errors = command("report", "a", "b")
    assert (status, errors) == (0, "")
    assert output.splitlines() == [
        "a: top-1 89.97% (95% interval 86.43% to 92.67%, 359 images)",
        "b: top-1 89.97% (95% interval 86.43% to 92.67%, 359 images)",
        "The difference in top-1 accuracy between the best runs may be chance "
        "(McNemar's exact test on the same images, p = 1).",
        "comparison.html",
    ]
    assert [run["name"] for run in read_data(tmp_path / "comparison.html")] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing does not exist; give the log folder of a run"),
        (["empty"], "empty holds no log of a run (metrics.jsonl); give the log folder of a run"),
        (["logs"], "logs holds no log of a run (metrics.jsonl); did you mean logs/newest?"),
        ([], "RUNS missing"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, command: Run, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    for name, time in (("a", 1), ("newest", 3), ("z", 2)):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "metrics.jsonl").touch()
        os.utime(tmp_path / "logs" / name / "metrics.jsonl", (time, time))
    status, output, errors = command("report", *arguments)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert message in errors


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", '{"classes": 5}'),
        ("summary.json", '{"classes": [1], "confusion": [[0]]}'),
        ("metrics.jsonl", '{"iteration": 1, "kind": "test"}\n{"iteration": "a", "kind": "test"}'),
        ("sessions.jsonl", '{"event": "start", "time": "2026-11-20T10:00:00", "iteration": [1]}'),
        ("options.yaml", "total-iters: [a]"),
    ],
)
def test_files_that_no_run_has_written_are_refused_in_one_line(tmp_path: Path, command: Run, name: str, content: str) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    status, output, errors = command("report", "run")
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert "run has files that no run has written" in errors


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[(name, "[" * 100_000) for name in ("summary.json", "metrics.jsonl", "sessions.jsonl", "options.yaml")],
        ("options.yaml", "a: &a [1, 1]\nb: [*a, *a]\n"),
        ("report.html", '<script type="application/json" id="data">[1]</script>'),
        ("report.html", '<script type="application/json" id="data">' * 100_000),
        ("train.log", "=" * 1_000_000),  # regular expressions that search from every character would take hours
    ],
)
def test_a_file_of_an_attacker_counts_as_empty(tmp_path: Path, command: Run, name: str, content: str) -> None:
    (write_run(tmp_path / "run") / name).write_text(content)
    status, output, errors = command("report", "run")
    assert (status, output, errors) == (0, "run/report.html\n", "")


@pytest.mark.parametrize(
    ("run", "log"), [("models", "logs/models"), ("models/a/b", "logs/a/b"), ("other", "other/logs"), ("logs/a/b", "logs/a/b")]
)
def test_a_run_is_found_by_its_folder_or_by_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, log: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (run, log):
        Path(folder).mkdir(parents=True, exist_ok=True)
    Path(log, "metrics.jsonl").write_text("")
    assert find_log_folder(run) == Path(log)


# ---- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sessions = [START | {"environment": ENVIRONMENT}, END]
    folder = write_run(tmp_path_factory.mktemp("runs") / "run", class_names=HOSTILE, sessions=sessions)
    return ReportPage(folder, Digits("train"), Digits("val")).write()


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.open(page, width=1440)
    return browser


def text(browser: Browser, selector: str) -> str:
    result: str = browser.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")
    return result


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_the_window_and_requests_nothing(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.requests.clear()
    browser.open(page, width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    sections = browser.evaluate("[...document.querySelectorAll('section')].map((section) => section.id)")
    assert sections == [
        "result", "curves", "confusion", "mistakes", "uncertain", "calibration", "classes", "options", "model", "run", "next",
    ]  # fmt: skip
    assert "89.97" in text(browser, "#result .big")
    assert browser.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert browser.requests == [page.as_uri()]
    assert browser.problems == []


def test_names_are_shown_as_text(opened: Browser) -> None:
    names = opened.evaluate("[...document.querySelectorAll('#classes tbody th')].map((cell) => cell.textContent)")
    assert sorted(names) == sorted(HOSTILE)
    assert opened.evaluate("window.attack") is None
    assert opened.evaluate("document.scripts.length") == 2


def test_pointing_at_a_curve_shows_its_values(opened: Browser) -> None:
    left, top, width, height = opened.box("#curves .plot svg")
    opened.move(left + width - 14, top + height / 2)
    assert opened.evaluate("getComputedStyle(document.querySelector('#curves .tip')).visibility") == "visible"
    assert text(opened, "#curves .tip") == "iteration 400training90.00 %validation90.00 %"
    opened.move(left + width / 2, top + height / 2)
    assert "iteration 200" in text(opened, "#curves .tip")
    opened.move(left + width / 2, top - 60)
    assert opened.evaluate("getComputedStyle(document.querySelector('#curves .tip')).visibility") == "hidden"


def test_the_list_of_sections_is_shown_whole_in_a_wide_window_and_scrolls_in_a_narrow_one(
    tmp_path: Path, browser: Browser
) -> None:
    folder = write_run(tmp_path)
    (folder / "bad_images.csv").write_text("training,cat/1.jpg,it is damaged\n")
    page = ReportPage(folder, Digits("train"), Digits("val")).write()
    for width, is_whole in ((1440, True), (1024, True), (390, False)):
        browser.open(page, width=width)
        rights = browser.evaluate("[...document.querySelectorAll('nav a')].map((link) => link.getBoundingClientRect().right)")
        assert len(rights) == 12
        assert (max(rights) <= width) is is_whole


def test_a_table_that_goes_on_beyond_the_edge_of_a_narrow_window_is_shaded_there(
    tmp_path: Path, browser: Browser, page: Path
) -> None:
    browser.open(page, width=390)
    left, top, width, height = browser.box("#run .scroll")

    def dark_pixels() -> int:
        """Count the pixels in the column at the right edge that do not have the colour of the ground."""
        browser.screenshot(tmp_path / "page.png")
        column = round(left + width) - 2
        first = round(top + browser.evaluate("scrollY"))
        pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"))[first : first + round(height), column]
        return int((pixels < 245).sum())

    assert dark_pixels() > height / 4
    browser.evaluate("document.querySelector('#run .scroll').scrollLeft = 1e6")
    assert dark_pixels() < height / 8  # lines between rows


def test_the_axes_of_a_short_run_name_each_value_once(tmp_path: Path, browser: Browser) -> None:
    folder = write_run(tmp_path)
    values = {"loss": 2.5, "top1_error": 0.91, "learning_rate": 0.1, "images_per_second": 100.2, "memory_mb": 801.4}
    rows = [{"kind": "train", "iteration": iteration} | values for iteration in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    browser.open(ReportPage(folder).write(), width=1440)
    for number in range(browser.evaluate("document.querySelectorAll('#curves svg').length")):
        along_y, along_x, name = browser.evaluate(
            f"[...document.querySelectorAll('#curves svg')[{number}].querySelectorAll(':scope > g:has(text), :scope > text')]"
            ".map((group) => [group, ...group.querySelectorAll('text')].filter((item) => item.localName === 'text')"
            ".map((item) => item.textContent))"
        )
        assert len(set(along_y)) == len(along_y) > 0
        assert along_x == ["1", "2"]
        assert name == ["iteration"]


def test_arrow_keys_move_along_a_curve(opened: Browser) -> None:
    opened.evaluate("document.querySelector('#curves svg').focus({focusVisible: true})")
    for key, iteration in (("Home", 20), ("ArrowRight", 40), ("End", 400), ("ArrowLeft", 380)):
        opened.press(key)
        assert f"iteration {iteration}" in text(opened, "#curves .tip")


def test_a_cell_of_the_confusion_matrix_shows_its_images(opened: Browser) -> None:
    opened.click("#confusion tbody tr:nth-child(5) td:nth-child(7)")  # 猫 🐱 taken for aaa...
    assert text(opened, ".detail h3").startswith("猫 🐱→aaaa")
    assert opened.evaluate("document.querySelectorAll('.detail img').length") == 7
    opened.press("ArrowLeft")
    assert text(opened, ".detail h3") == "猫 🐱 recognized"
    opened.press("ArrowUp")
    assert text(opened, ".detail h3") == "__proto__→猫 🐱"
    assert opened.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"


def test_everything_is_reached_with_the_keyboard(opened: Browser) -> None:
    reached = set()
    for _ in range(60):
        opened.press("Tab")
        reached.add(opened.evaluate("(document.activeElement.closest('section, nav, .skip') || {}).id"))
    assert reached >= {"nav", "curves", "confusion", "calibration", "classes", "options", "model", "run", "next"}


def test_the_classes_are_sorted_by_a_click(opened: Browser) -> None:
    def names() -> list[str]:
        result: list[str] = opened.evaluate(
            "[...document.querySelectorAll('#classes tbody th')].map((cell) => cell.textContent)"
        )
        return result

    by_recall = names()
    opened.click("#classes thead th:nth-child(2) button")
    assert text(opened, "#classes [aria-sort='descending']") == "Recall"
    assert names() != by_recall


def test_many_classes_are_a_picture_of_which_every_point_can_be_selected(tmp_path: Path, browser: Browser) -> None:
    row = {"support": 10, "predicted": 10, "correct": 9, "precision": 0.9, "recall": 0.9, "f1": 0.9}
    confusion = [cell for label in range(100) for cell in ([label, label, 9], [label, (label + 50) % 100, 1])]
    summary = {"classes": [{"name": f"class {label}"} | row for label in range(100)], "confusion": confusion}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    browser.open(ReportPage(tmp_path).write(), width=390)
    left, top, width, height = browser.box("canvas")
    browser.move(left + width * 0.705, top + height * 0.205)
    assert text(browser, "#confusion [role=status]") == "class 20 → class 70: 1"
    browser.click("canvas")  # the point in the middle
    assert "class 49" in text(browser, ".detail h3") or "class 50" in text(browser, ".detail h3")
    browser.evaluate("document.querySelector('canvas').focus()")
    browser.press("ArrowDown")
    assert "→" in text(browser, ".detail h3")
    assert browser.problems == []


def test_an_evaluation_has_a_page_without_what_only_a_training_has(tmp_path: Path, browser: Browser, command: Run) -> None:
    folder = write_run(tmp_path / "evaluation")
    for name in ("metrics.jsonl", "sessions.jsonl", "options.yaml", "train.log"):
        (folder / name).unlink()
    assert command("report", "evaluation")[0] == 0
    browser.open(folder / "report.html", width=390)
    sections = browser.evaluate("[...document.querySelectorAll('section')].map((section) => section.id)")
    assert sections == ["result", "confusion", "mistakes", "uncertain", "calibration", "classes"]
    assert text(browser, "#result .headline").endswith(
        "are classified correctly by best.pkl. 95 % interval: 86.43 % to 92.67 %."
    )
    assert browser.problems == []


def test_runs_are_compared(tmp_path: Path, browser: Browser, command: Run) -> None:
    write_run(tmp_path / "a", accuracy=0.9)
    write_run(tmp_path / "b", accuracy=0.8, options={"mixup": "0.2"})
    assert command("report", "a", "b")[0] == 0
    browser.open(tmp_path / "comparison.html", width=390)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    rows = browser.evaluate("[...document.querySelectorAll('#options tbody tr')].map((row) => row.innerText.split('\\t'))")
    assert rows == [["mixup", "0.0", "0.2"]]
    left, top, width, height = browser.box("#curves .plot svg")
    browser.move(left + width - 14, top + height / 2)
    assert text(browser, "#curves .tip") == "iteration 400a90.00 %b80.00 %"
    assert text(browser, "#result tbody .num") == "89.97 %86.43 % to 92.67 %"
    assert browser.evaluate("document.querySelectorAll('.best').length") == 0
    assert browser.problems == []
    pages = [ReportPage(tmp_path / name).collect() for name in "ab"]
    write_page(tmp_path / "comparison.html", pages, 1, "The top-1 accuracy of b is higher by more than chance.")
    browser.open(tmp_path / "comparison.html", width=1440)
    best = browser.evaluate(
        "[...document.querySelectorAll('.best')].map((cell) => cell.closest('tr').innerText.split('\\t')[0])"
    )
    assert best == ["b"]
    assert "of b is higher by more than chance. Below each" in text(browser, "#result .note")
