"""The examples in docstrings give what they say, and the names that a user meets first have one."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import nlp
import pointcloud
import trisparse
import video

# Names without an example of their own need none that the others have not shown.
FIRST_NAMES = {
    "nlp.Cascade", "nlp.Embedder", "nlp.Packer", "nlp.accelerate", "nlp.compare", "pointcloud.Segmenter",
    "pointcloud.SparseConvTensor", "pointcloud.SubMConv3d", "pointcloud.accelerate", "pointcloud.compare",
    "pointcloud.devoxelize", "pointcloud.load_pretrained", "pointcloud.read_points", "pointcloud.voxelize",
    "trisparse.list_pretrained", "trisparse.load_pretrained", "video.Classifier", "video.Stream",
    "video.VideoReader", "video.accelerate", "video.add_temporal_shift", "video.delta.accelerate",
    "video.load_pretrained", "video.sample_indices", "video.skip.EveryNth", "video.skip.LumaDifference",
    "video.temporal_shift",
}  # fmt: skip
PACKAGES: tuple[ModuleType, ...] = (nlp, pointcloud, trisparse, video, video.delta, video.skip)
NEEDS_MINILM = "all-minilm-l6-v2"


def examples() -> dict[str, doctest.DocTest]:
    """The examples in the docstrings of public functions, classes and their methods, by public name."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for package in PACKAGES:
        for name in package.__all__:
            thing = getattr(package, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                for test in finder.find(thing, f"{package.__name__}.{name}", module=False, globs={}):
                    if test.examples:
                        found[test.name] = test
    return found


EXAMPLES = examples()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples find scan.ply, of three points, and clip.mp4 and still.mp4, of twenty frames each."""
    folder = tmp_path_factory.mktemp("docstrings")
    points = torch.tensor([[1.0, 2.0, 0.0], [2.0, 2.0, 0.5], [3.0, 2.0, 1.0]])
    pointcloud.write_ply(folder / "scan.ply", pointcloud.PointCloud(points, intensity=torch.ones(3)))
    try:
        from tests.video.clips import texture, write_clip
    except pytest.skip.Exception:
        return folder
    write_clip(folder / "clip.mp4", [texture(i) for i in range(20)])
    write_clip(folder / "still.mp4", [texture(0)] * 20)
    return folder


@pytest.fixture
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_give_what_they_say(name: str, in_folder: None) -> None:
    test = EXAMPLES[name]
    if "VideoReader" in test.docstring:
        pytest.importorskip("av")
    if NEEDS_MINILM in "".join(example.source for example in test.examples):
        pytest.importorskip("transformers")
        if NEEDS_MINILM not in nlp.list_pretrained():
            pytest.skip(f"{NEEDS_MINILM} is not installed")
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)


def test_the_names_that_a_user_meets_first_have_an_example() -> None:
    assert FIRST_NAMES - set(EXAMPLES) == set()


def test_a_wrong_example_is_found_out(in_folder: None) -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
