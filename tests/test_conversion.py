"""Weights of other projects compute here what they compute there, and leave as they came."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2, files
from shufflenetv2.errors import UserError
from shufflenetv2.weights import Preprocessing, Weights, WeightsError, model_record
from shufflenetv2.weights.convert import (
    NAMES,
    from_mmpretrain,
    from_torchvision,
    permutations,
    pretrained,
    read_any,
    recognise,
    rgb_normalisation,
    to_mmpretrain,
    to_torchvision,
)
from tests.models import CLASSES, IMAGENET, MMBackbone, MMClassifier, random_weights, randomized, torchvision_network
from tests.reference import SIZES, ReferenceNetwork
from tests.support import same_tensors


def pictures(seed: int = 1) -> Tensor:
    """Two images, BGR on 0..255, not square."""
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 255


def normalised(images: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """What whoever uses the other network feeds it: RGB on 0..1, through torchvision's Normalize."""
    mean, std = rgb_normalisation(preprocessing)
    result: Tensor = torchvision.transforms.functional.normalize(images.flip(1) / 255, mean, std)
    return result


def exact(weights: Weights) -> ShuffleNetV2:
    """The network in float64, its mean and standard deviation included."""
    network = weights.network().double()
    network.input_mean = torch.tensor(network.mean, dtype=torch.float64).view(1, 3, 1, 1)
    network.input_std = torch.tensor(network.std, dtype=torch.float64).view(1, 3, 1, 1)
    return network


def assert_same_function(weights: Weights, theirs: nn.Module) -> None:
    """In float64 but for rounding; in float32 to 1e-4; both of the largest logit."""
    images = pictures()
    with torch.no_grad():
        expected = theirs.double()(normalised(images, weights.preprocessing))
        size = expected.abs().max().item()
        assert (expected[0] - expected[1]).abs().max() > 0.01 * size  # the image matters
        torch.testing.assert_close(exact(weights)(images), expected, rtol=0, atol=1e-10 * size)
        single = weights.network()(images.float()).double()
    torch.testing.assert_close(single, expected, rtol=0, atol=1e-4 * size)


@pytest.fixture(params=SIZES)
def model_size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_torchvisions_weights_compute_the_same_here(model_size: str) -> None:
    theirs = randomized(torchvision_network(model_size))
    weights = from_torchvision(theirs.state_dict())
    assert (weights.model_size, weights.n_class, weights.architecture["head_bias"]) == (model_size, CLASSES, True)
    resize_size = 232 if model_size in ("1.5x", "2.0x") else 256
    assert weights.preprocessing == Preprocessing(224, resize_size, IMAGENET.mean, IMAGENET.std)
    for values, published in zip(
        rgb_normalisation(weights.preprocessing), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), strict=True
    ):
        assert values == pytest.approx(published, rel=1e-12)
    assert_same_function(weights, theirs)


def test_torchvisions_weights_leave_as_they_came(model_size: str) -> None:
    came = randomized(torchvision_network(model_size)).state_dict()
    left = to_torchvision(from_torchvision(came))
    assert same_tensors(left, came)
    torchvision_network(model_size).load_state_dict(left, strict=True)


def test_our_weights_compute_the_same_in_torchvision_and_come_back(model_size: str) -> None:
    weights = random_weights(model_size, layout="torchvision", head_bias=True)
    theirs = torchvision_network(model_size)
    theirs.load_state_dict(to_torchvision(weights), strict=True)
    back = from_torchvision(theirs.state_dict())
    assert same_tensors(back.state_dict, weights.state_dict)
    assert back.network().architecture == weights.network().architecture | {"layout": "torchvision"}
    for preprocessing in (None, IMAGENET):
        weights.preprocessing = preprocessing
        assert_same_function(weights, theirs.eval())


def test_mmpretrains_weights_compute_the_same_here_and_leave_as_they_came(model_size: str) -> None:
    theirs = randomized(MMClassifier(model_size))
    came = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    weights = from_mmpretrain(came)
    assert weights.preprocessing == IMAGENET
    assert same_tensors(to_mmpretrain(weights), came)
    assert_same_function(weights, theirs)


def test_torchvisions_weights_become_mmpretrains(model_size: str) -> None:
    # Their two networks are the same but for the names, so nothing is reordered between them.
    theirs = randomized(torchvision_network(model_size)).state_dict()
    other = to_mmpretrain(from_torchvision(theirs))
    assert all(torch.equal(tensor, theirs[torchvision_name(name)]) for name, tensor in other.items())


def torchvision_name(mmpretrains: str) -> str:
    module, _, part = mmpretrains.rpartition(".")
    place = list(NAMES["mmpretrain"].values()).index(module)
    return f"{list(NAMES['torchvision'].values())[place]}.{part}"


def test_the_two_layouts_coincide_for_the_smallest_size() -> None:
    theirs = randomized(torchvision_network("0.5x"))
    weights = from_torchvision(theirs.state_dict())
    plain = ShuffleNetV2(64, CLASSES, "0.5x", mean=IMAGENET.mean, std=IMAGENET.std, layout="original", head_bias=True)
    plain.load_state_dict(weights.state_dict, strict=True)
    with torch.no_grad():
        assert torch.equal(plain.eval()(pictures().float()), weights.network()(pictures().float()))


def test_the_originals_weights_become_torchvisions_where_they_fit(tmp_path: Path) -> None:
    original = randomized(ReferenceNetwork(CLASSES, "0.5x", 64)).double()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in original.state_dict().items()}}, tmp_path / "w")
    weights = read_any(tmp_path / "w")
    theirs = torchvision_network("0.5x").double()
    theirs.load_state_dict(to_torchvision(weights), strict=True)  # double, as they were
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 255
    with torch.no_grad():
        expected = original(images)
        rgb = images.flip(1)  # on 0..255 as the original has it
        torch.testing.assert_close(normalised(images, weights.preprocessing), rgb)
        torch.testing.assert_close(theirs.eval()(rgb), expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    # The zero biases that torchvision's head was given are gone again.
    assert same_tensors(from_torchvision(theirs.state_dict()).state_dict, weights.state_dict)


@pytest.mark.parametrize("size", SIZES)
def test_the_orders_are_permutations_and_all_but_the_shuffles_trivial_ones(size: str) -> None:
    orders = permutations(size)
    shapes = ShuffleNetV2(32, 2, size, layout="torchvision").state_dict()
    for (module, dimension), order in orders.items():
        assert order.sort().values.tolist() == list(range(shapes[f"{module}.weight"].shape[dimension]))
    moved = {key for key, order in orders.items() if order.tolist() != order.sort().values.tolist()}
    assert ("conv_last.0", 1) in moved
    assert ("features.0.branch_main.0", 1) not in moved  # the stem is not shuffled


@pytest.mark.parametrize(
    ("model_size", "architecture", "reason"),
    [
        ("1.0x", {}, r"58 \+ 58 channels, not 24 \+ 92"),
        ("2.0x", {}, r"122 \+ 122 channels, not 24 \+ 220"),
        ("0.5x", {"pooling": "max"}, "pooling"),
        ("0.5x", {"pooling": "catavgmax"}, "pooling"),
        ("0.5x", {"bn_eps": 1e-3}, "batch norm"),
    ],
)
def test_what_the_other_network_cannot_express_is_refused(model_size: str, architecture: dict[str, Any], reason: str) -> None:
    for convert in (to_torchvision, to_mmpretrain):
        with pytest.raises(WeightsError, match=reason) as refusal:
            convert(random_weights(model_size, "mine.pkl", **architecture))
        assert_one_line(refusal.value, "mine.pkl")


def assert_one_line(error: UserError, culprit: str | Path) -> None:
    assert "\n" not in str(error)
    assert str(culprit) in str(error)


def test_weights_with_something_missing_unknown_or_of_another_shape_are_refused() -> None:
    complete = randomized(torchvision_network("0.5x")).state_dict()
    name = "stage3.2.branch2.5.weight"
    wrong: list[dict[str, Any]] = [
        {key: tensor for key, tensor in complete.items() if key != name},
        complete | {name: complete[name][:, :-1]},
        complete | {name: "nothing"},
    ]
    for state_dict in wrong:
        with pytest.raises(WeightsError, match=f"file.pth .*{name}") as refusal:
            from_torchvision(state_dict, "file.pth")
        assert_one_line(refusal.value, "0.5x")
    with pytest.raises(WeightsError, match="extra"):
        from_torchvision(complete | {"extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match="mmpretrain"):
        from_mmpretrain(complete)
    incomplete = random_weights("0.5x")
    del incomplete.state_dict["conv_last.1.bias"]
    with pytest.raises(WeightsError, match=r"conv_last.1.bias"):
        to_torchvision(incomplete)


def test_weights_without_counts_of_batches_are_taken() -> None:
    # torch before 0.4.1 did not count
    complete = randomized(torchvision_network("0.5x")).state_dict()
    old = {name: tensor for name, tensor in complete.items() if not name.endswith("num_batches_tracked")}
    assert same_tensors(to_torchvision(from_torchvision(old)), old)
    torchvision_network("0.5x").load_state_dict(to_torchvision(from_torchvision(old)), strict=True)


def test_whose_weights_they_are_is_seen_from_names_and_shapes() -> None:
    assert recognise(ReferenceNetwork(CLASSES, "1.5x").state_dict()) == "ours"
    assert recognise(random_weights("1.0x", layout="torchvision", head_bias=True).state_dict) == "ours"
    assert recognise(torchvision_network("1.0x").state_dict()) == "torchvision"
    assert recognise(MMClassifier("1.0x").state_dict()) == "mmpretrain"
    assert recognise(torchvision.models.resnet18().state_dict()) is None
    assert recognise(dict.fromkeys(torchvision_network("0.5x").state_dict(), 1)) is None
    assert recognise({}) is None


def foreign_files() -> Iterator[tuple[str, Any, bool]]:
    """Name, content, and whether a file of it is torchvision's."""
    theirs, original = torchvision_network("0.5x").state_dict(), ReferenceNetwork(CLASSES, "0.5x").state_dict()
    for wrapping in (None, "state_dict", "model", "model_ema"):
        for prefix in ("", "module.", "_orig_mod.module."):
            for state_dict in (theirs, original):
                named: Mapping[str, Any] = {prefix + name: tensor for name, tensor in state_dict.items()}
                if prefix == "module.":
                    named = {"n_averaged": torch.tensor(3), **named}
                content = {wrapping: named, "epoch": 3} if wrapping else named
                yield f"{wrapping} {prefix}", content, state_dict is theirs


def test_a_file_is_read_however_its_trainer_wrapped_it(tmp_path: Path) -> None:
    for name, content, is_torchvisions in foreign_files():
        path = tmp_path / name
        torch.save(content, path)
        weights = read_any(path)
        assert (weights.path, weights.model_size, weights.n_class) == (path, "0.5x", CLASSES)
        assert weights.architecture["head_bias"] is is_torchvisions
        assert (weights.preprocessing is not None) is is_torchvisions
        weights.network()


def test_what_a_file_says_of_its_model_is_kept(tmp_path: Path) -> None:
    network = ShuffleNetV2(64, 3, "1.0x", layout="torchvision", bn_eps=1e-3)
    record = model_record(network, class_names=["a", "b", "c"], preprocessing=IMAGENET, iteration=8)
    files.write(tmp_path / "ours", record)
    weights = read_any(tmp_path / "ours")
    assert (weights.class_names, weights.preprocessing, weights.iteration) == (["a", "b", "c"], IMAGENET, 8)
    assert weights.architecture == network.architecture
    assert same_tensors(weights.state_dict, network.state_dict())

    classes = tuple(f"class {i}" for i in range(CLASSES))
    for meta in ({"dataset_meta": {"classes": classes}}, {"CLASSES": classes}):
        torch.save({"meta": meta, "state_dict": MMClassifier("0.5x").state_dict()}, tmp_path / "mm")
        assert read_any(tmp_path / "mm").class_names == list(classes)
    torch.save({"meta": {"CLASSES": classes[1:]}, "state_dict": MMClassifier("0.5x").state_dict()}, tmp_path / "mm")
    assert read_any(tmp_path / "mm").class_names is None


def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path) -> None:
    contents: dict[str, Any] = {
        "resnet": torchvision.models.resnet18().state_dict(),
        "backbone alone": MMBackbone("0.5x").state_dict(),
        "list": [torch.zeros(1)],
        "empty": {},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "text").write_text("no weights")
    for name in (*contents, "text", "absent"):
        with pytest.raises(WeightsError) as refusal:
            read_any(tmp_path / name)
        assert_one_line(refusal.value, tmp_path / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as torch.hub's, in a world without a network."""

    def unplugged(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setattr("torch.hub.urlopen", unplugged)
    monkeypatch.setattr(urllib.request, "urlopen", unplugged)
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("size", "file", "resize_size"),
    [("1.0x", "shufflenetv2_x1-5666bf0f80.pth", 256), ("2.0x", "shufflenetv2_x2_0-8be3c8ee.pth", 232)],
)
def test_torchvisions_published_weights_come_from_the_hubs_folder(hub: Path, size: str, file: str, resize_size: int) -> None:
    theirs = randomized(torchvision_network(size, classes=1000))
    torch.save(theirs.state_dict(), hub / file)
    weights = pretrained(size, progress=False)
    assert weights.class_names is not None
    assert (len(weights.class_names), weights.class_names[0], weights.n_class) == (1000, "tench", 1000)
    assert weights.preprocessing == Preprocessing(224, resize_size, IMAGENET.mean, IMAGENET.std)
    assert weights.path == hub / file
    assert_same_function(weights, theirs)


def test_without_a_network_pretrained_weights_are_refused_in_one_line(hub: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot be downloaded .*no network.*--initial-checkpoint") as refusal:
        pretrained("1.5x", progress=False)
    assert_one_line(refusal.value, "--pretrained")
    assert list(hub.iterdir()) == []


class Code:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_download_that_is_damaged_or_holds_code_is_named_and_not_run(hub: Path) -> None:
    file = hub / "shufflenetv2_x0.5-f707e7126e.pth"
    for content in (b"cut short", Code(hub / "executed")):
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        with pytest.raises(WeightsError, match="delete it") as refusal:
            pretrained("0.5x", progress=False)
        assert_one_line(refusal.value, file)
        assert list(hub.iterdir()) == [file]
