"""Hooks are called in the documented order; old checkpoints are deleted."""

import json
import sys
import threading
from pathlib import Path

import pytest

from shufflenetv2.cli.command import main
from shufflenetv2.engine import Hook, checkpoint, load_hook
from shufflenetv2.errors import UserError
from tests.support import SHORT, Train

RECORDER = """
import json
from shufflenetv2.engine import Hook

class Recorder(Hook):
    name = "recorder"

    def __init__(self):
        self.calls = []

    def record(self, *call):
        self.calls.append([self.name, *call])

    def before_run(self, run):
        self.record("before_run", run.state.iteration, run.config.optimization.total_iters, len(run.train_set))

    def before_iteration(self, iteration, images, targets):
        self.record("before_iteration", iteration, list(images.shape), list(targets.shape))

    def after_iteration(self, iteration, loss, logits):
        assert not (loss.requires_grad or logits.requires_grad)
        self.record("after_iteration", iteration, list(loss.shape), list(logits.shape))

    def before_evaluation(self, iteration):
        self.record("before_evaluation", iteration)

    def after_evaluation(self, iteration, result):
        self.record("after_evaluation", iteration, result.images)

    def after_save(self, iteration, path):
        self.record("after_save", iteration, path.rpartition("/")[2])

    def after_run(self, run):
        run.checkpointer.wait()
        self.record("after_run", run.state.iteration, (run.checkpointer.folder / "model.pkl").exists())
        with open(self.name + ".json", "w") as file:
            json.dump(self.calls, file)

class Second(Recorder):
    name = "second"

class Silent(Hook):
    pass
"""


def test_hooks_are_called_during_a_run_in_order(train: Train, tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "hooks.py").write_text(RECORDER)
    # The module `mine.hooks` lies in the working directory of the run.
    done = train(
        "--train-dir", photographs, "--val-dir", photographs, "--model-size", "0.5x", "--input-size", "32", "--lr", "0.01",
        "--batch-size", "8", "--total-iters", "12", "--val-interval", "6", "--save-interval", "4", "--device", "cpu",
        "--no-figures",
        "--mixup", "0.5", "--model-ema", "--hook", "mine.hooks:Recorder", "--hook", "mine.hooks:Silent", "mine.hooks:Second",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = json.loads((tmp_path / "recorder.json").read_text())
    second = json.loads((tmp_path / "second.json").read_text())
    assert [call[1:] for call in second] == [call[1:] for call in calls]

    expected: list[list[object]] = [["before_run", 0, 12, 21]]
    for iteration in range(1, 13):
        expected.append(["before_iteration", iteration, [8, 3, 32, 32], [8, 3]])  # with mixup, targets are probabilities
        expected.append(["after_iteration", iteration, [], [8, 3]])
        if iteration % 6 == 0:  # the weights and the averaged weights are evaluated
            expected += [["before_evaluation", iteration], ["after_evaluation", iteration, 21]] * 2
        if iteration % 4 == 0:
            expected.append(["after_save", iteration, f"checkpoint-{iteration:06}.pth.tar"])
    without_best = [call[1:] for call in calls if call[-1] != "best.pkl"]
    assert without_best[: len(expected)] == expected
    rest = without_best[len(expected) :]
    assert rest[-1] == ["after_run", 12, True]
    best = [call[2] for call in calls if call[-1] == "best.pkl"]
    assert set(best) <= {6, 12}
    assert best[-1] == 12  # the result
    # The results, and the best weights so far where these are not the last ones
    evaluations = 2 + (best[:-1] == [6])
    assert rest.count(["before_evaluation", 12]) == rest.count(["after_evaluation", 12, 21]) == evaluations
    saved = {call[2] for call in rest if call[0] == "after_save"}
    assert {"model.pkl", "model-ema.pkl", "bnps-checkpoint-000012.pth.tar"} <= saved


def test_an_exception_of_a_hook_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises.py").write_text(
        "from shufflenetv2.engine import Hook\n\n\nclass Stop(Hook):\n"
        "    def after_iteration(self, iteration, loss, logits):\n"
        "        if iteration == 5:\n            raise RuntimeError('enough')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(RuntimeError, match="enough"):
        main([*SHORT, "--hook", "raises:Stop"])
    for thread in threading.enumerate():
        if thread.name == "writer":  # a process waits for this thread before it ends
            thread.join()
    assert [path.name for path in (tmp_path / "models").glob("checkpoint-*")] == ["checkpoint-000004.pth.tar"]


def test_load_hook_imports_from_the_working_directory_and_makes_a_new_instance_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "found_beside.py").write_text(RECORDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    first, second = load_hook("found_beside:Silent"), load_hook("found_beside:Silent")
    assert isinstance(first, Hook)
    assert type(first) is type(second)
    assert first is not second
    assert type(load_hook("shufflenetv2.engine:Hook")) is Hook


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mine", "must have the form package.module:Name"),
        ("mine:", "must have the form package.module:Name"),
        (":Mine", "must have the form package.module:Name"),
        (".mine:Mine", "must have the form package.module:Name"),
        ("folder/mine.py:Mine", "must have the form package.module:Name"),
        ("no_such_module:Mine", "No module named 'no_such_module'"),
        ("shufflenetv2.nothing:Mine", "No module named 'shufflenetv2.nothing'"),
        ("needs_more:Mine", "No module named 'a_missing_library'"),
        ("hooks_of_mine:Absent", "hooks_of_mine has no Absent"),
        ("hooks_of_mine:function", "is not a class derived from"),
        ("hooks_of_mine:Other", "is not a class derived from"),
        ("hooks_of_mine:Demanding", "missing a required argument: 'path'; it is called with no arguments"),
    ],
)
def test_a_name_that_does_not_name_a_hook_gives_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, part: str
) -> None:
    (tmp_path / "needs_more.py").write_text("import a_missing_library")
    (tmp_path / "hooks_of_mine.py").write_text(
        "from shufflenetv2.engine import Hook\n\ndef function(): pass\n\nclass Other: pass\n\n"
        "class Demanding(Hook):\n    def __init__(self, path): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "hooks_of_mine", raising=False)
    with pytest.raises(UserError) as caught:
        load_hook(name)
    message = str(caught.value)
    assert message.startswith(f"`hook` {name}")
    assert part in message
    assert "\n" not in message
    assert caught.value.status == 2


ITERATIONS = (4, 8, 9, 12, 15, 16, 18)


@pytest.mark.parametrize(
    ("hist", "interval", "kept"),
    [
        (None, None, ITERATIONS),
        (1, None, (18,)),
        (3, None, (15, 16, 18)),
        (99, None, ITERATIONS),
        (None, 4, (4, 8, 12, 16, 18)),
        (3, 4, (8, 12, 16, 18)),
        (1, 4, (16, 18)),
        (None, 100, (16, 18)),
        (2, 9, (9, 16, 18)),
    ],
)
def test_old_checkpoints_are_deleted_but_never_the_newest_two_unless_one_is_wanted(
    tmp_path: Path, hist: int | None, interval: int | None, kept: tuple[int, ...]
) -> None:
    others = ["best.pkl", "bnps-checkpoint-000004.pth.tar", "checkpoint-000004.pth.tar.damaged", "model.pkl"]
    for name in [*map(checkpoint.checkpoint_name, ITERATIONS), *others]:
        (tmp_path / name).touch()
    for _ in range(2):
        checkpoint.prune(tmp_path, hist=hist, interval=interval)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {*map(checkpoint.checkpoint_name, kept), *others}


@pytest.mark.parametrize(
    ("hist", "interval", "kept"),
    [
        (1, None, (9, 18)),
        (2, None, (9, 12, 16, 18)),
        (3, None, (8, 9, 12, 16, 18)),
        (2, 4, (8, 12, 16, 18)),
        (1, 8, (8, 16, 18)),
        (9, None, ITERATIONS),
    ],
)
def test_the_checkpoints_with_the_best_validations_are_kept_besides_the_newest(
    tmp_path: Path, hist: int, interval: int | None, kept: tuple[int, ...]
) -> None:
    """The validation before a checkpoint counts, and of checkpoints with equal scores the newest is kept."""
    for name in map(checkpoint.checkpoint_name, ITERATIONS):
        (tmp_path / name).touch()
    scores = {5: -0.4, 9: -0.1, 10: -0.3, 13: -0.9, 17: -0.5}  # of 8; of 9; of 12; of 15 and 16; of 18
    checkpoint.prune(tmp_path, hist=hist, interval=interval, scores=scores)
    assert {path.name for path in tmp_path.iterdir()} == set(map(checkpoint.checkpoint_name, kept))


def test_pruning_an_empty_folder_does_nothing(tmp_path: Path) -> None:
    checkpoint.prune(tmp_path, hist=1)
    assert list(tmp_path.iterdir()) == []
