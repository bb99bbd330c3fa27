"""A file is complete or absent, damage is detected, and nothing in a file is executed."""

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from shufflenetv2 import ShuffleNetV2, files, load_model
from shufflenetv2.engine import checkpoint
from shufflenetv2.errors import UserError
from shufflenetv2.weights import Preprocessing, model_record, read_weights
from tests.support import same_tensors


@pytest.fixture
def network() -> ShuffleNetV2:
    return ShuffleNetV2(32, 10, "0.5x")


def test_a_file_is_read_back_here_and_by_torch_alone(tmp_path: Path, network: ShuffleNetV2) -> None:
    path = tmp_path / "file.pth"
    files.write(path, {"state_dict": network.state_dict(), "iteration": 3})
    for content in (files.read(path, require_checksum=True), torch.load(path, weights_only=True)):
        assert content["iteration"] == 3
        assert same_tensors(content["state_dict"], network.state_dict())
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.pth"]


def test_a_full_disk_leaves_the_previous_file(tmp_path: Path) -> None:
    """A limit on the size of files, in another process, has the effect of a full disk."""
    path = tmp_path / "file.pth"
    files.write(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    program = (
        "import resource, signal, sys, torch; from pathlib import Path; from shufflenetv2 import UserError, files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: files.write(Path(sys.argv[1]), {'a': torch.ones(100_000)})\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "    error.itself = error  # a reference cycle: the garbage collector finalizes the buffers, in any order\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be written: File too large; the files written before are intact" in done.stdout
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.pth"]


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, "bad.pth")
    with pytest.raises(files.DamagedFileError, match="more than tensors"):
        files.read(Path("bad.pth"))
    assert not Path("executed").exists()


def test_the_newest_valid_checkpoint_is_read_and_the_damaged_ones_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    for iteration in (2, 10, 1_000_000):
        files.write(tmp_path / checkpoint.checkpoint_name(iteration), {"iteration": iteration, "optimizer": {}})
    files.write(tmp_path / checkpoint.checkpoint_name(10, "bnps-"), {"iteration": 99})
    assert (tmp_path / "checkpoint-000010.pth.tar").exists()
    (tmp_path / "checkpoint-1000000.pth.tar").write_bytes(b"")
    torch.save({"iteration": 77}, tmp_path / "checkpoint-000500.pth.tar")  # from another program
    newest = checkpoint.read_newest(tmp_path)
    assert newest is not None
    assert newest[1]["iteration"] == 10
    assert (tmp_path / "checkpoint-000500.pth.tar.damaged").exists()  # kept under another name
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "checkpoint-1000000.pth.tar is empty" in messages[0]
    assert "checkpoint-000500.pth.tar" in messages[1]


# ---- weights


def test_a_weight_file_describes_its_model(tmp_path: Path) -> None:
    network = ShuffleNetV2(64, 3, "1.0x", mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0)).eval()
    preprocessing = Preprocessing(64, 73, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    record = model_record(network, class_names=["a", "b", "c"], preprocessing=preprocessing, iteration=5)
    files.write(tmp_path / "model.pkl", record)
    weights = read_weights(tmp_path / "model.pkl")
    assert (weights.model_size, weights.n_class, weights.class_names, weights.iteration) == ("1.0x", 3, ["a", "b", "c"], 5)
    assert weights.preprocessing == preprocessing
    images = torch.rand(2, 3, 64, 64) * 255
    loaded = load_model(tmp_path / "model.pkl")
    assert not loaded.training
    assert torch.equal(loaded(images), network(images))


@pytest.mark.parametrize("name", ["net.pkl", "net.pth.tar", "net.mdl"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_the_original_are_read(tmp_path: Path, name: str, prefix: str, wrapped: bool, zipped: bool) -> None:
    network = ShuffleNetV2(n_class=12, model_size="0.5x")
    state_dict = OrderedDict((prefix + key, value) for key, value in network.state_dict().items())
    torch.save({"state_dict": state_dict} if wrapped else state_dict, tmp_path / name, _use_new_zipfile_serialization=zipped)
    weights = read_weights(tmp_path / name)
    assert (weights.model_size, weights.n_class, weights.class_names) == ("0.5x", 12, None)
    assert same_tensors(weights.network().state_dict(), network.state_dict())


def test_weights_that_cannot_be_used_are_refused_with_the_reason(tmp_path: Path, network: ShuffleNetV2) -> None:
    path = tmp_path / "weights.pkl"
    with pytest.raises(UserError, match="No such file"):
        read_weights(path)
    path.write_bytes(b"no weights at all")
    with pytest.raises(UserError, match="is not a file of weights"):
        read_weights(path)
    torch.save([1, 2, 3], path)
    with pytest.raises(UserError, match="holds a list"):
        read_weights(path)
    torch.save({"layer.weight": torch.ones(3)}, path)
    with pytest.raises(UserError, match="holds no weights of a ShuffleNetV2"):
        read_weights(path)
    incomplete = network.state_dict()
    del incomplete["features.3.branch_main.0.weight"]
    torch.save(incomplete, path)
    with pytest.raises(UserError, match=r"does not fit .* 1 tensors .* features\.3\.branch_main\.0\.weight first"):
        read_weights(path).network()
