"""Transfer channel pruning: the criterion by hand, the cost by arithmetic, and networks that stay what they were."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeda.channels import couplings, narrow, narrow_optimizer_state, widths
from edgeda.errors import Diverged, InputError
from edgeda.export.onnx import export_onnx
from edgeda.models import Architecture, Network, NetworkCard, build_network, load_network, save_network
from edgeda.profiling import profile_model
from edgeda.profiling.complexity import torch_complexity
from edgeda.profiling.onnx_graph import onnx_complexity
from edgeda.pruning import ChannelScores, check_target, prunable, prune_to
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.preprocessing import Preprocessing

SIZE = 32
CLASSES = ("a", "b", "c")
MANIFEST = {
    "classes": list(CLASSES), "architecture": "resnet18", "precision": "fp32", "batch": [1, None], "format": 1,
}  # fmt: skip


def network_of(backbone: str = "resnet18", seed: int = 0) -> Network:
    """A network in eval mode whose BatchNorm statistics and biases are not those of a new one."""
    torch.manual_seed(seed)
    network = build_network(Architecture(backbone, 3, 8))[0]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def random_scores(network: Network, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(width, generator=generator) for name, width in widths(network, prunable(network)).items()}


def gmacs(network: Network, size: int = SIZE) -> float:
    return torch_complexity(network, size).gmacs


def kill(network: Network, every: int = 3) -> tuple[dict[str, Tensor], int]:
    """Make a channel in `every` exactly zero after its BatchNorm; the scores that say so, and how many they are."""
    scores, count = {}, 0
    for name, coupling in prunable(network).items():
        norm = network.get_submodule(coupling.norms[0])
        assert isinstance(norm, nn.BatchNorm2d)
        scores[name] = torch.ones(norm.num_features)
        scores[name][::every] = 0
        count += len(scores[name][::every])
        with torch.no_grad():
            norm.weight[::every] = 0
            norm.bias[::every] = 0
    return scores, count


# --- which channels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "blocks", "pattern"),
    [("resnet18", 8, "conv1"), ("resnet34", 16, "conv1"), ("resnet50", 16, "conv[12]"), ("resnet101", 33, "conv[12]")],
)
def test_inside_residual_blocks_and_nowhere_else(backbone, blocks, pattern):
    found = prunable(build_network(Architecture(backbone, 3))[0])
    assert all(re.fullmatch(rf"backbone\.layer[1-4]\.\d+\.{pattern}", name) for name in found)
    assert len(found) == blocks * (2 if "[" in pattern else 1)
    for name, coupling in found.items():
        place, number = name[:-1], int(name[-1])
        assert coupling.norms == (f"{place.removesuffix('conv')}bn{number}",)
        assert coupling.consumer == f"{place}{number + 1}"


def test_tracing_changes_nothing():
    network = network_of().train()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    prunable(network)
    assert network.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "resnext50_32x4d", "vit_tiny_patch16_224"])
def test_a_backbone_that_cannot_be_pruned(backbone):
    with pytest.raises(InputError, match=f"^{backbone} cannot be pruned: .*r18 to r152") as caught:
        prunable(build_network(Architecture(backbone, 3))[0])
    assert "\n" not in str(caught.value)


def test_a_blur_between_two_convolutions_is_left_alone():
    found = prunable(build_network(Architecture("resnetblur18", 3))[0])
    assert "backbone.layer2.1.conv1" in found
    assert "backbone.layer2.0.conv1" not in found, "its stride is a blur with a filter for every channel"


# --- the criterion ---------------------------------------------------------------------------------------------------


class Tiny(nn.Sequential):
    """y = w . relu(x) of pixels x (B, 3, H, W) in float64: two channels copied from the image, w = (2, -3)."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False))
        self.double()
        with torch.no_grad():
            self[0].weight.copy_(torch.eye(3)[:2].reshape(2, 3, 1, 1))
            self[2].weight.copy_(torch.tensor([2.0, -3.0]).reshape(1, 2, 1, 1))


def pixels(*channels: list[list[float]]) -> Tensor:
    """Images (B, 3, 1, 2) of two channels' values by image, the third channel empty."""
    two = torch.tensor(channels, dtype=torch.float64).transpose(0, 1)
    return torch.cat([two, torch.zeros(len(two), 1, 2)], dim=1).unsqueeze(2)


IMAGES = pixels([[1, 3], [2, -5], [4, 0]], [[1, 1], [0, 2], [-1, 6]])
"""Two source images and one of the target."""
WEIGHTS = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
"""What each image counts in the loss."""


def accumulated(joint: bool, batches: int = 1) -> ChannelScores:
    tiny = Tiny()
    scores = ChannelScores(tiny, couplings(tiny))
    for _ in range(batches):
        with scores.recording():
            made = tiny(IMAGES) if joint else torch.cat([tiny(IMAGES[:2]), tiny(IMAGES[2:])])
            scores.add((made.sum(dim=(1, 2, 3)) * WEIGHTS).sum(), source_images=2)
    assert all(not module._forward_pre_hooks for module in tiny.modules())
    assert all(parameter.grad is None for parameter in tiny.parameters())
    return scores


@pytest.mark.parametrize("joint", [True, False])
def test_the_criterion_by_hand(joint):
    # a * dL/da, dL/da = weight of the image x (2, -3); relu makes -5 and -1 nothing
    # source, channel 0: (1 + 3) x 1 x 2 + 2 x 2 x 2 = 16 over 4 pixels;  channel 1: (2 x 1 + 2 x 2) x -3 = -18 over 4
    # target, channel 0: 4 x -1 x 2 = -8 over 2 pixels;                   channel 1: 6 x -1 x -3 = 18 over 2
    scores = accumulated(joint)
    assert scores.sums["0"].tolist() == [[4.0, 4.5], [4.0, 9.0]]
    norm = (4**2 + 4.5**2) ** 0.5, (4**2 + 9**2) ** 0.5
    expected = [min(4 / norm[0], 4 / norm[1]), min(4.5 / norm[0], 9 / norm[1])]
    assert scores.scores()["0"].tolist() == pytest.approx(expected, rel=1e-12)


def test_scores_accumulate_over_the_pass():
    assert accumulated(True, batches=3).sums["0"].tolist() == [[12.0, 13.5], [12.0, 27.0]]


def test_contributions_of_one_batch_may_cancel():
    """The absolute value stands outside the mean."""
    tiny = Tiny()
    scores = ChannelScores(tiny, couplings(tiny))
    with scores.recording():
        made = tiny(pixels([[1, 0], [1, 0], [1, 0]], [[1, 0], [1, 0], [1, 0]]))
        scores.add((made.sum(dim=(1, 2, 3)) * torch.tensor([1.0, -1.0, 1.0])).sum(), source_images=2)
    assert scores.sums["0"].tolist() == [[0.0, 0.0], [1.0, 1.5]]
    assert scores.scores()["0"].tolist() == [0.0, 0.0], "a domain that says nothing of a layer is no division by zero"


def test_the_activation_is_after_batchnorm_and_relu():
    """A channel that BatchNorm and ReLU make zero scores zero, whatever its convolution computes."""
    network = network_of("test_resnet").train()
    dead, _ = kill(network)
    scores = ChannelScores(network, prunable(network))
    images = torch.randn(6, 3, SIZE, SIZE)
    with scores.recording():
        output = network(images)
        scores.add(output.logits.square().mean(), source_images=3)
    for name, values in scores.scores().items():
        assert (values[dead[name] == 0] == 0).all(), name
        assert (values[dead[name] == 1] > 0).float().mean() > 0.5, name


def test_scores_that_are_not_finite_choose_nothing():
    network = network_of()
    scores = ChannelScores(network, prunable(network))
    next(iter(scores.sums.values()))[0, 3] = float("nan")
    with pytest.raises(Diverged, match="not finite"):
        scores.scores()


def test_sums_survive_a_checkpoint():
    scores = accumulated(True)
    tiny = Tiny()
    other = ChannelScores(tiny, couplings(tiny))
    other.load_state(copy.deepcopy(scores.state()))
    assert torch.equal(other.sums["0"], scores.sums["0"])


# --- the pruned network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet18", "resnet26"])
def test_without_its_dead_channels_a_network_says_the_same(backbone):
    network = network_of(backbone).double()
    scores, dead = kill(network)
    dense = copy.deepcopy(network)
    pruned = prune_to(network, scores, 0.8 * gmacs(network), SIZE, minimum=1, most=dead)
    assert pruned.removed <= dead
    assert all(bool((scores[name][indices] == 1).any()) for name, indices in pruned.kept.items())
    assert all(len(scores[name]) - len(kept) <= (scores[name] == 0).sum() for name, kept in pruned.kept.items())
    images = torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(network(images).logits, dense(images).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_residual_sums_keep_their_width(backbone):
    network = network_of(backbone)
    dense = {name: module.weight.shape for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    last = "conv2" if backbone == "resnet18" else "conv3"
    prune_to(network, random_scores(network), 0.5 * gmacs(network), SIZE)
    assert network.feature_width == build_network(Architecture(backbone, 3, 8))[0].feature_width
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and (name.endswith((last, "downsample.0")) or name == "backbone.conv1"):
            assert module.out_channels == module.weight.shape[0] == dense[name][0], name


def test_the_lowest_scores_of_the_whole_network_go():
    network = network_of()
    scores = random_scores(network)
    pruned = prune_to(network, scores, 0.7 * gmacs(network), SIZE, minimum=1)
    kept = torch.cat([scores[name][pruned.kept[name]] for name in pruned.kept])
    all_scores = torch.cat(list(scores.values()))
    threshold = all_scores.sort().values[pruned.removed]
    assert kept.min() >= threshold
    assert sum(len(value) for value in scores.values()) - sum(map(len, pruned.kept.values())) == pruned.removed


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("cut", [0.12, 0.45])
def test_the_target_is_met_within_the_cost_of_one_channel(backbone, cut):
    network = network_of(backbone)
    dense = gmacs(network)
    pruned = prune_to(network, random_scores(network), (1 - cut) * dense, SIZE)
    assert pruned.gmacs == pytest.approx(gmacs(network), rel=1e-12), "arithmetic and fvcore agree to the last one"
    # the dearest channel is one of a 512-wide layer: 9 x 512 weights to it and from it, on 1 x 1 pixels, or one
    # of a 64-wide layer: 9 x 64 weights to it and from it on 8 x 8 pixels
    assert (1 - cut) * dense - 2 * 9 * 64 * 64 * 1e-9 * 1.1 < pruned.gmacs <= (1 - cut) * dense


def test_no_layer_goes_under_the_minimum():
    network = network_of()
    scores = random_scores(network)
    first = "backbone.layer1.0.conv1"
    scores[first] = torch.zeros(64)  # nothing matters less
    prune_to(network, scores, 0.6 * gmacs(network), SIZE, minimum=20)
    assert network.architecture.channels[first] == 20
    assert min(network.architecture.channels.values()) >= 20


def test_at_most_so_many_channels():
    network = network_of()
    pruned = prune_to(network, random_scores(network), 0.5 * gmacs(network), SIZE, most=32)
    assert pruned.removed == 32
    assert pruned.gmacs > 0.9 * gmacs(network_of())


def test_a_target_that_is_met_already_removes_nothing():
    network = network_of()
    pruned = prune_to(network, random_scores(network), gmacs(network), SIZE)
    assert (pruned.removed, dict(pruned.kept), dict(network.architecture.channels)) == (0, {}, {})


def test_a_target_that_cannot_be_met_names_the_closest():
    network = network_of()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(InputError) as caught:
        prune_to(network, random_scores(network), 0.05 * gmacs(network), SIZE, minimum=8)
    found = re.search(r"a cut of (\d+\.\d)%; cut less, or lower prune.minimum", str(caught.value))
    assert found, str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    closest = float(found[1]) / 100
    target = check_target(network, closest, SIZE, minimum=8)
    assert prune_to(network, random_scores(network), target, SIZE, minimum=8).gmacs <= target
    with pytest.raises(InputError, match=r"resnet18 cannot be pruned to .* GMACs"):
        check_target(network_of(), closest + 0.001, SIZE, minimum=8)


def test_pruning_twice_goes_on_where_it_stopped():
    network = network_of()
    dense = gmacs(network)
    prune_to(network, random_scores(network), 0.9 * dense, SIZE)
    once = dict(network.architecture.channels)
    prune_to(network, random_scores(network, 1), 0.7 * dense, SIZE)
    assert gmacs(network) <= 0.7 * dense
    assert all(network.architecture.channels[name] <= width for name, width in once.items())
    now = widths(network, prunable(network))
    dense_now = widths(fresh := network_of(), prunable(fresh))
    assert network.architecture.channels == {name: now[name] for name in now if now[name] < dense_now[name]}


# --- optimizers ------------------------------------------------------------------------------------------------------


def descend(network: Network, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        images = torch.randn(4, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        network(images).logits.square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_momentum_follows_the_surviving_channels(kind):
    """Dead channels change nothing: without them training goes on exactly as with them, momentum included."""
    network = network_of("test_resnet").double().train()
    scores, dead = kill(network)

    def optimizer_of(trained: Network) -> torch.optim.Optimizer:
        if kind == "adam":
            return torch.optim.Adam(trained.parameters(), lr=1e-3)
        return torch.optim.SGD(trained.parameters(), lr=0.01, momentum=0.9)

    optimizer = optimizer_of(network)
    descend(network, optimizer, 2, seed=0)
    dense = copy.deepcopy(network)
    dense_optimizer = optimizer_of(dense)
    dense_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    found = prunable(network)
    pruned = prune_to(network, scores, 0.5 * gmacs(network), SIZE, minimum=1, most=dead)
    assert pruned.removed > 20
    narrow_optimizer_state(optimizer, network, found, pruned.kept)
    for trained, by in ((network, optimizer), (dense, dense_optimizer)):
        descend(trained, by, 2, seed=1)
    narrow(dense, found, pruned.kept)
    for name, value in dense.state_dict().items():
        assert torch.allclose(network.state_dict()[name], value, rtol=0, atol=1e-10), name


def test_a_narrowed_network_keeps_its_memory_format():
    network = network_of("resnet10t").to(memory_format=torch.channels_last)
    prune_to(network, random_scores(network), 0.6 * gmacs(network), SIZE)
    rebuilt = build_network(network.architecture)[0].to(memory_format=torch.channels_last)
    strides = {name: value.stride() for name, value in rebuilt.state_dict().items()}
    assert {name: value.stride() for name, value in network.state_dict().items()} == strides


# --- as a MODEL ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned_network() -> Network:
    network = network_of("resnet18")
    prune_to(network, random_scores(network), 0.55 * gmacs(network), SIZE)
    return network


def card_of(network: Network, channels: Mapping[str, object] | None = None) -> NetworkCard:
    of = network.architecture
    described = Architecture(of.backbone, of.classes, of.bottleneck, of.channels if channels is None else channels)  # type: ignore[arg-type]
    return NetworkCard(described, CLASSES, Preprocessing(SIZE))


def test_a_pruned_network_saves_and_loads(pruned_network, tmp_path):
    path = tmp_path / "student.safetensors"
    save_network(path, pruned_network.state_dict(), card_of(pruned_network))
    loaded, card = load_network(path)
    assert card == card_of(pruned_network)
    assert loaded.architecture == pruned_network.architecture
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, pruned_network(images).logits)


def test_the_card_of_a_dense_network_is_what_it_was(tmp_path):
    """Files written before pruning existed have no `channels`, and load."""
    network, path = network_of("resnet10t"), tmp_path / "student.safetensors"
    save_network(path, network.state_dict(), card_of(network))
    with safe_open(path, framework="pt") as opened:
        described = json.loads(opened.metadata()["edgeda"])["architecture"]
    assert described == {"backbone": "resnet10t", "classes": 3, "bottleneck": 8}
    assert load_network(path)[1].architecture == Architecture("resnet10t", 3, 8)
    assert hash(Architecture("r18", 3, 0, {"a": 1})) == hash(Architecture("r18", 3, 0, {"a": 1}))


FIRST = "backbone.layer1.0.conv1"


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ({"backbone.layer9.0.conv1": 8}, "no convolution 'backbone.layer9.0.conv1' that could be pruned"),
        ({"backbone.layer1.0.conv2": 8}, "no convolution 'backbone.layer1.0.conv2' that could be pruned"),
        ({"head": 2}, "no convolution 'head'"),
        ({FIRST: 65}, f"{FIRST} of resnet18 has 1 to 64 channels, not 65"),
        ({FIRST: 0}, "not 0"),
        ({FIRST: -3}, "not -3"),
        ({FIRST: 10**30}, "not 1000000000"),
        ({FIRST: 8.5}, "not 8.5"),
        ({FIRST: True}, "not True"),
        ({FIRST: None}, "not None"),
        ([[FIRST, 8]], "should be given by convolution"),
        ("wide", "should be given by convolution"),
    ],
)
def test_a_card_with_widths_that_cannot_be(pruned_network, tmp_path, channels, words):
    path = tmp_path / "student.safetensors"
    text = json.dumps({
        "architecture": {"backbone": "resnet18", "classes": 3, "bottleneck": 8, "channels": channels},
        "classes": CLASSES, "preprocessing": Preprocessing(SIZE).to_dict(), "role": "student",
    })  # fmt: skip
    save_file(pruned_network.state_dict(), path, metadata={"edgeda": text})
    with pytest.raises(InputError) as caught:
        load_network(path)
    assert str(caught.value).startswith(f"{path} describes a network that cannot be built: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_other_widths_than_the_card_says(pruned_network, tmp_path):
    path = tmp_path / "student.safetensors"
    save_network(path, pruned_network.state_dict(), card_of(pruned_network, {FIRST: 9}))
    with pytest.raises(InputError, match="do not fit their own description"):
        load_network(path)


def test_a_pruned_architecture_takes_no_pretrained_weights():
    with pytest.raises(InputError, match="cannot start from pretrained weights"):
        build_network(Architecture("resnet18", 3, 0, {FIRST: 9}), "auto")


def test_a_pruned_network_exports(pruned_network, tmp_path):
    manifest = Manifest.from_dict({**MANIFEST, "preprocessing": Preprocessing(SIZE).to_dict()})
    export_onnx(pruned_network, manifest, tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = pruned_network(images).logits.numpy()
    found = session.run(["logits"], {"images": images.numpy()})[0]
    assert np.abs(found - expected).max() < 1e-4
    # the file is as small as the network: BatchNorm is folded into convolutions, a bias for each output
    counted = onnx_complexity(tmp_path / "student.onnx")
    assert counted.gmacs < 0.56 * gmacs(network_of("resnet18"))


def test_a_pruned_network_profiles(pruned_network, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("{}")
    save_network(run / "student.safetensors", pruned_network.state_dict(), card_of(pruned_network))
    rows = profile_model(str(run), engines=["torch"], threads=1, budget_s=0.05)
    assert rows[0].gmacs == pytest.approx(gmacs(pruned_network))
    assert rows[0].median_ms is not None
