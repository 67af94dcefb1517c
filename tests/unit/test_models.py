"""Networks: built by name, saved with what they need, and what is said of weights that do not fit."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edgeda import checkpoint, pretrained
from edgeda.errors import InputError
from edgeda.models import (
    Architecture,
    LogitsOnly,
    Network,
    NetworkCard,
    backbone_name,
    build_network,
    load_network,
    parameters_m,
    read_card,
    save_network,
)
from edgeda.runtime.preprocessing import Preprocessing

SMALL = "resnet10t"
CLASSES = ("Hund", "帽子", "été, deux")
CARD = NetworkCard(
    Architecture(SMALL, 3, 8), CLASSES, Preprocessing(40, "squash", 1.0, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25)), "teacher"
)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return build_network(Architecture(SMALL, 3, 8))[0].eval()


@pytest.fixture(scope="module")
def timm_weights() -> dict[str, torch.Tensor]:
    """A whole timm classifier of 1000 classes, as people have it in a file."""
    torch.manual_seed(1)
    state = timm.create_model(SMALL, pretrained=False).state_dict()
    for name, value in state.items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    return state


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        ("r18", "resnet18"),
        ("r34", "resnet34"),
        ("R50", "resnet50"),
        ("r101", "resnet101"),
        ("r152", "resnet152"),
        ("resnet10t", "resnet10t"),
        ("resnet18.tv_in1k", "resnet18.tv_in1k"),
    ],
)
def test_aliases_and_timm_names(name, timm_name):
    assert backbone_name(name) == timm_name


@pytest.mark.parametrize(("name", "nearest"), [("resnt18", "resnet18"), ("mobilnetv3_small_100", "mobilenetv3_small")])
def test_an_unknown_backbone_names_the_nearest(name, nearest):
    message = refusal(backbone_name, name)
    assert message.startswith(f"unknown backbone '{name}'")
    assert f"did you mean '{nearest}" in message


@pytest.mark.parametrize("name", ["", "x", "[", "../weights.pth", "hf-hub:someone/something"])
def test_nonsense_for_a_backbone(name):
    message = refusal(backbone_name, name)
    assert message.startswith(f"unknown backbone '{name}'")
    assert "any timm name works, and r18, r34, r50, r101, r152" in message


def test_a_backbone_with_weights_that_timm_has_not():
    assert "timm has no weights 'nonsense' for resnet18" in refusal(backbone_name, "resnet18.nonsense")


# --- networks --------------------------------------------------------------------------------------------------------


def test_a_network_is_backbone_bottleneck_and_head(network):
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        pooled = network.backbone(images)
        features, logits = network(images)
        assert pooled.shape == (2, 512)
        assert features.shape == (2, 8)
        assert features.min() == 0.0, "after a ReLU"
        assert torch.equal(features, network.bottleneck(pooled))
        assert torch.allclose(logits, features @ network.head.weight.T + network.head.bias, atol=1e-6)
        assert torch.equal(LogitsOnly(network)(images), logits)
    assert network.feature_width == 8
    assert network.architecture == Architecture(SMALL, 3, 8)


def test_without_a_bottleneck_the_features_are_the_backbones():
    network = build_network(Architecture("r18", 5))[0].eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features, logits = network(images)
        assert torch.equal(features, network.backbone(images))
    assert logits.shape == (1, 5)
    assert network.architecture.backbone == "resnet18", "saved under the name that timm knows"
    # ResNet-18 without its 1000-class head has 11,176,512 parameters (He et al., 2016)
    assert parameters_m(network) == pytest.approx((11_176_512 + 512 * 5 + 5) / 1e6)


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "lcnet_035"])
def test_a_backbone_that_is_wider_after_its_pooling(backbone):
    # these end in a further convolution: 1024 and 1280 wide, not their last stage's 288 and 176
    network = build_network(Architecture(backbone, 3))[0].eval()
    with torch.no_grad():
        features, logits = network(torch.randn(1, 3, 32, 32))
    assert features.shape == (1, network.feature_width)
    assert logits.shape == (1, 3)


@pytest.mark.parametrize("bottleneck", [0, 8])
def test_every_parameter_is_either_new_or_the_backbones(bottleneck):
    network = build_network(Architecture(SMALL, 3, bottleneck))[0]
    new = [id(parameter) for parameter in network.new_parameters()]
    old = [id(parameter) for parameter in network.backbone.parameters()]
    assert len(set(new)) == len(new)
    assert set(new).isdisjoint(old)
    assert sorted(new + old) == sorted(id(parameter) for parameter in network.parameters())
    count = sum(parameter.numel() for parameter in network.new_parameters())
    # Linear 512 -> 8 with bias, BatchNorm of 8, Linear 8 -> 3 with bias; or Linear 512 -> 3 with bias
    assert count == ((512 * 8 + 8) + 2 * 8 + (8 * 3 + 3) if bottleneck else 512 * 3 + 3)


# --- saved networks --------------------------------------------------------------------------------------------------


def test_a_saved_network_is_the_same_network(network, tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_network(path, network.state_dict(), CARD)
    loaded, card = load_network(path)
    assert card == CARD
    assert read_card(path) == CARD
    assert not loaded.training
    assert list(loaded.state_dict()) == list(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, network(images).logits)
    assert [file.name for file in tmp_path.iterdir()] == ["teacher.safetensors"]


def test_weights_of_another_shape(network, tmp_path):
    path = tmp_path / "student.safetensors"
    wider = NetworkCard(Architecture(SMALL, 4, 8), (*CLASSES, "more"), CARD.preprocessing)
    save_network(path, network.state_dict(), wider)
    message = refusal(load_network, path)
    assert message.startswith(f"the weights in {path} do not fit their own description")
    assert "head" in message


def test_weights_of_another_backbone(network, tmp_path):
    path = tmp_path / "student.safetensors"
    save_network(path, network.state_dict(), NetworkCard(Architecture("resnet18", 3, 8), CLASSES, CARD.preprocessing))
    assert "do not fit their own description" in refusal(load_network, path)


def test_a_backbone_that_this_timm_has_not(network, tmp_path):
    path = tmp_path / "student.safetensors"
    save_network(path, network.state_dict(), NetworkCard(Architecture("resnet10z", 3, 8), CLASSES, CARD.preprocessing))
    assert "unknown backbone 'resnet10z'" in refusal(load_network, path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"edgeda": "{not json"},
        {"edgeda": "[1, 2]"},
        {"edgeda": "{}"},
        {"edgeda": '{"architecture": {"backbone": "r18"}}'},
        {"edgeda": '{"architecture": {"backbone": "r18", "classes": 2}, "classes": ["a", "b"], "preprocessing": {}}'},
    ],
)
def test_a_safetensors_file_that_is_no_network_of_ours(metadata, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    message = refusal(load_network, path)
    assert "is not a network saved by edgeda" in message or "preprocessing cannot be read" in message


@pytest.mark.parametrize("content", [b"", b"no weights in here", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_safetensors(content, tmp_path):
    path = tmp_path / "student.safetensors"
    path.write_bytes(content)
    assert f"{path} is not a network saved by edgeda" in refusal(load_network, path)
    assert "no such file" in refusal(load_network, tmp_path / "none.safetensors")


def test_a_network_cut_off(network, tmp_path):
    path = tmp_path / "student.safetensors"
    save_network(path, network.state_dict(), CARD)
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a network saved by edgeda" in refusal(load_network, path)


def test_a_full_disk_leaves_the_earlier_network(network, tmp_path, monkeypatch):
    path = tmp_path / "student.safetensors"
    save_network(path, network.state_dict(), CARD)
    before = path.read_bytes()

    def full_disk(tensor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_bytes_of", full_disk)  # the header is written
    with pytest.raises(OSError, match="No space left"):
        save_network(path, network.state_dict(), CARD)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["student.safetensors"]


def test_a_network_travels_without_pickle(network, tmp_path):
    path = tmp_path / "student.safetensors"
    save_network(path, network.state_dict(), CARD)
    with safe_open(path, framework="pt") as opened:
        assert set(opened.metadata()) == {"edgeda"}
        assert len(opened.keys()) == len(network.state_dict())


# --- pretrained weights ----------------------------------------------------------------------------------------------


def wrap(kind: str, state: dict[str, torch.Tensor]) -> Any:
    if kind == "state_dict":
        return {"state_dict": state, "epoch": 3}
    if kind == "module":
        return {f"module.{name}": value for name, value in state.items()}
    return state


@pytest.mark.parametrize("kind", ["plain", "state_dict", "module", "safetensors"])
def test_weights_from_a_local_file_are_loaded(kind, timm_weights, tmp_path):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(timm_weights, path)
    else:
        torch.save(wrap(kind, timm_weights), path)
    network, origin = build_network(Architecture(SMALL, 3, 8), str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert origin == f"pretrained ({path.name}, sha256 {digest})"
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, timm_weights[name]), name
    assert network.head.out_features == 3, "the file's own head of 1000 classes is left behind"


def test_a_network_of_ours_can_be_the_start_of_another(network, tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_network(path, network.state_dict(), CARD)
    started, _ = build_network(Architecture(SMALL, 7), str(path))
    assert torch.equal(started.backbone.conv1[0].weight, network.backbone.conv1[0].weight)
    assert started.head.out_features == 7


def test_weights_of_the_wrong_architecture_name_a_tensor(timm_weights, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm_weights, path)
    message = refusal(build_network, Architecture("resnet18", 3), str(path))
    assert message.startswith(f"{path} does not hold this backbone: ")
    # ResNet-18's first tensor; resnet10t has three convolutions there instead
    assert message.endswith("the first is 'conv1.weight'")


def test_a_tensor_that_is_missing_is_named(timm_weights, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({name: value for name, value in timm_weights.items() if name != "layer2.0.conv1.weight"}, path)
    message = refusal(build_network, Architecture(SMALL, 3), str(path))
    assert ": 1 of " in message
    assert "'layer2.0.conv1.weight'" in message


def test_a_tensor_of_another_shape_is_named(timm_weights, tmp_path):
    path = tmp_path / "weights.pth"
    name = "layer1.0.conv1.weight"
    torch.save({**timm_weights, name: timm_weights[name][:7].clone()}, path)
    message = refusal(build_network, Architecture(SMALL, 3), str(path))
    assert ": 1 of " in message
    assert f"'{name}'" in message


class Malicious:
    """Unpickling it opens a file for writing."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.marker), "w")


def test_a_pickle_that_would_run_code_is_refused(timm_weights, tmp_path):
    path, marker = tmp_path / "weights.pth", tmp_path / "was here"
    torch.save({**timm_weights, "payload": Malicious(marker)}, path)
    assert f"cannot read weights from {path}" in refusal(build_network, Architecture(SMALL, 3), str(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", [[torch.ones(1)], {"model": {"a": torch.ones(1)}}, {0: torch.ones(1)}, torch.ones(3)]
)
def test_a_file_without_a_state_dict(content, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert refusal(build_network, Architecture(SMALL, 3), str(path)) == f"{path} holds no state dict of tensors"


def test_weights_that_are_not_there_or_not_weights(tmp_path):
    assert "no such weights file: /no/such.pth" in refusal(build_network, Architecture(SMALL, 3), "/no/such.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights in here")
        message = refusal(build_network, Architecture(SMALL, 3), str(tmp_path / name))
        assert message.startswith(f"cannot read weights from {tmp_path / name}: ")


def test_auto_takes_timms_weights(monkeypatch):
    asked: list[bool] = []
    create = timm.create_model

    def create_model(name, pretrained, **rest):
        asked.append(pretrained)
        return create(name, pretrained=False, **rest)

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(pretrained, "_can_be_had", lambda name: True)
    assert build_network(Architecture(SMALL, 3), "auto")[1] == "pretrained (timm)"
    assert asked == [True]


def test_auto_asks_the_hub_once_before_it_would_retry_for_a_minute(monkeypatch):
    def refuse(address, timeout):
        assert timeout < 10
        raise OSError("no route")

    def create_model(name, pretrained, **rest):
        assert not pretrained, "without a connection nothing is downloaded"
        return create(name, pretrained=False, **rest)

    create = timm.create_model
    for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(pretrained.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(pretrained.socket, "create_connection", refuse)
    assert build_network(Architecture(SMALL, 3), "auto")[1].startswith(pretrained.NOT_HAD)
    monkeypatch.setattr(pretrained.huggingface_hub, "try_to_load_from_cache", lambda *_: "/cache/model.safetensors")
    assert pretrained._can_be_had(SMALL), "cached weights need no network"


@pytest.mark.parametrize(
    "error",
    [OSError("Cannot reach the hub\nretry later"), RuntimeError(""), ValueError("\nsecond line"), KeyError("x" * 500)],
)
def test_auto_without_a_network_starts_from_scratch_and_gives_the_reason(error, monkeypatch, caplog):
    create = timm.create_model
    monkeypatch.setattr(pretrained, "_can_be_had", lambda name: True)

    def offline(name, pretrained, **rest):
        if pretrained:
            raise error
        return create(name, pretrained=False, **rest)

    monkeypatch.setattr(timm, "create_model", offline)
    network, origin = build_network(Architecture(SMALL, 3), "auto")
    assert origin.startswith(f"{pretrained.NOT_HAD} (")
    assert origin.endswith(")")
    assert isinstance(network, Network)
    assert not [record for record in caplog.records if record.name.startswith("edgeda")], "the run says it, once"
    assert "()" not in origin
    assert "\n" not in origin
    assert len(origin) < 250


def test_auto_does_not_ask_for_weights_that_timm_never_had(monkeypatch, caplog):
    create = timm.create_model

    def create_model(name, pretrained, **rest):
        assert not pretrained
        return create(name, pretrained=False, **rest)

    monkeypatch.setattr(timm, "create_model", create_model)
    _, origin = build_network(Architecture("resnetblur18", 3), "auto")
    assert origin == "from scratch (timm has no weights for it)"
    assert not caplog.records


def test_none_asks_for_no_weights(monkeypatch):
    create = timm.create_model

    def create_model(name, pretrained, **rest):
        assert not pretrained
        return create(name, pretrained=False, **rest)

    monkeypatch.setattr(timm, "create_model", create_model)
    assert build_network(Architecture(SMALL, 3), "none")[1] == "from scratch"
