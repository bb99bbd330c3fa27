"""What Python code outside this repository relies on: the names of the package, and torch.hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shufflenetv2
from shufflenetv2 import UserError, load_model, read_weights
from tests.models import example_image, randomized, torchvision_network
from tests.support import ONE_THREAD, ROOT, hub_load


def test_torch_hub_loads_a_weight_file_or_makes_a_new_network(tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "torchvision")
    torch.save(randomized(torchvision_network("1.0x")).state_dict(), checkpoint)
    with torch.no_grad():
        expected = load_model(checkpoint)(example_image())
        for model_size in (None, "1.0x"):
            model = hub_load(model_size=model_size, pretrained=False, checkpoint=checkpoint)
            assert torch.equal(model(example_image()), expected)
    assert hub_load(n_class=5, model_size="0.5x")(example_image().repeat(2, 1, 1, 1)).shape == (2, 5)
    assert (hub_load().model_size, hub_load().n_class) == ("1.0x", 1000)
    for arguments, message in (
        ({"model_size": "2.0x"}, "holds a 1.0x model, but `model_size` is 2.0x"),
        ({"pretrained": True}, "leave one out"),
        ({"n_class": 5}, "`n_class` is for a network with new weights"),
    ):
        with pytest.raises(UserError, match=message):
            hub_load(checkpoint=checkpoint, **arguments)


def test_dir_lists_the_public_names_and_each_has_a_docstring() -> None:
    assert dir(shufflenetv2) == [
        "Preprocessing", "ShuffleNetV2", "ShuffleV2Block", "UserError", "Weights", "__version__", "convert", "data",
        "describe", "engine", "export", "load", "load_model", "predict", "pretrained_weights", "read_weights",
        "recalibrate", "recipe", "train",
    ]  # fmt: skip
    for name in dir(shufflenetv2):
        assert getattr(shufflenetv2, name).__doc__
    assert shufflenetv2.read_any is read_weights  # the name in version 0.1


def test_importing_the_package_does_not_import_torch() -> None:
    program = "import sys, shufflenetv2; print({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    environment = {**os.environ, **ONE_THREAD}
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.stdout == "set()\n", finished.stderr
