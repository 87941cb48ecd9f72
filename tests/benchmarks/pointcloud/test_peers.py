"""The peers are right before anything is compared with them: against dense convolutions, and against each other."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.data import Unavailable
from benchmarks.harness import disagreement
from benchmarks.pointcloud import peer_networks, peers
from tests.benchmarks.clouds import shell

pytestmark = pytest.mark.usefixtures("one_thread")
needs_spconv = pytest.mark.skipif(importlib.util.find_spec("spconv") is None, reason="spconv is not installed")


def dense(coords: Tensor, x: Tensor, size: int) -> Tensor:
    """[1, C, size, size, size]"""
    grid = x.new_zeros(size, size, size, x.shape[1])
    grid[tuple(coords[:, 1:].long().T)] = x
    return grid.permute(3, 0, 1, 2)[None]


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 1, 2), (2, 2, 0), (3, 2, 1)])
def test_plain_torch_is_a_dense_convolution_at_active_cells(kernel: int, stride: int, padding: int) -> None:
    work = shell(16, 5.0)
    x = torch.randn(work.n_rows, 3, dtype=torch.float64)
    weight = torch.randn(4, kernel, kernel, kernel, 3, dtype=torch.float64)
    if stride == 1:
        pairs = peers.torch_submanifold(work.coords, work.shape, kernel)
    else:
        pairs = peers.torch_strided(work.coords, work.shape, kernel, stride, padding)
    full = F.conv3d(dense(work.coords, x, 16), weight.permute(0, 4, 1, 2, 3), stride=stride, padding=padding)[0]
    expected = full[(slice(None), *pairs.coords[:, 1:].long().T)].T
    torch.testing.assert_close(peers.torch_convolve(x, pairs, weight), expected)
    if stride > 1:  # outputs are exactly the cells that some input reaches
        ones = torch.ones(1, 1, kernel, kernel, kernel, dtype=torch.float64)
        reached = F.conv3d(dense(work.coords, x[:, :1] * 0 + 1, 16), ones, stride=stride, padding=padding)[0, 0] > 0
        assert torch.equal(pairs.coords[:, 1:].long(), reached.nonzero())


def test_plain_torch_has_right_gradients() -> None:
    work = shell(16, 3.0)
    pairs = peers.torch_submanifold(work.coords, work.shape)
    x = torch.randn(work.n_rows, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: peers.torch_convolve(x, pairs, w), (x, weight), fast_mode=True)


@needs_spconv
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "submanifold"), [(3, 1, 0, True), (2, 2, 0, False), (3, 2, 1, False)]
)
def test_maps_of_spconv_and_plain_torch_are_the_same_pairs(
    kernel: int, stride: int, padding: int, submanifold: bool
) -> None:
    work = shell()
    built = peers.spconv_map(
        peers.spconv(), work.coords, work.shape, kernel, stride, kernel // 2 if submanifold else padding, submanifold
    )
    taps, out_coords = peers.spconv_taps(built, work.coords, submanifold)
    if submanifold:
        pairs = peers.torch_submanifold(work.coords, work.shape, kernel)
    else:
        pairs = peers.torch_strided(work.coords, work.shape, kernel, stride, padding)
    theirs = peers.pairs_as_triples(taps, work.coords, out_coords, work.shape)
    assert torch.equal(theirs, peers.pairs_as_triples(pairs.taps, work.coords, pairs.coords, work.shape))
    assert len(theirs) == pairs.count > work.n_rows // 2


@needs_spconv
@pytest.mark.parametrize("cached", [False, True], ids=["rebuilt", "cached"])
def test_networks_of_spconv_and_plain_torch_agree(cached: bool) -> None:
    work = shell()
    weights = peer_networks.random_weights(4, 5, 0.5)
    exact = peer_networks.torch_network(work, {k: v.double() for k, v in weights.items()}, 0.5, cached)()
    assert disagreement([peer_networks.torch_network(work, weights, 0.5, cached)()], [exact]) < 1e-5
    with peers.one_thread():
        call = peer_networks.spconv_network(peers.spconv(), work, weights, 0.5, cached)
        assert disagreement([call()], [exact]) < 1e-5


def test_layers_of_the_network_are_the_published_ones() -> None:
    plan = peer_networks.layers(4, 1.0)
    assert len(plan) == 49
    parameters = sum(conv.kernel**3 * conv.cin * conv.cout + 2 * conv.cout for conv in plan) + 97 * 19 - 19 + 19
    assert parameters == pytest.approx(21.7e6, rel=0.01)
    assert [conv.level for conv in plan if conv.kind == "down"] == [1, 2, 3, 4]
    assert [conv.cin for conv in plan if conv.name in ("up1.1.0", "up4.1.0")] == [256 + 128, 96 + 32]


def test_products_count_every_pair() -> None:
    work = shell()
    pyramid = peer_networks.Pyramid.build(work.coords, work.shape)
    products = pyramid.products(peer_networks.layers(4, 0.5), 19)
    assert products[-1] == (work.n_rows, 48, 19)
    assert sum(rows for rows, cin, _ in products if cin == 4) == pyramid.submanifold[0].count


def test_a_missing_peer_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="no_such_spconv is not installed"):
        peers.spconv("no_such_spconv")


def test_one_thread_restores_the_count_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), peers.one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_by_coordinates_undoes_a_permutation() -> None:
    work = shell(16, 5.0)
    order = torch.randperm(work.n_rows)
    assert torch.equal(peers.by_coordinates(work.coords[order], work.features[order]), work.features)


@needs_spconv
def test_spconv_is_timed_without_the_search_of_kept_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A competitor that searched its maps again in each call would lose to ours for the wrong reason."""
    from benchmarks.harness import Settings
    from benchmarks.pointcloud import layers, network

    module = peers.spconv()
    searched: list[bool] = []
    search = module.ops.get_indice_pairs

    def counting(*args: object, **kwargs: object) -> object:
        searched.append(bool(args[9]))  # subm
        return search(*args, **kwargs)

    monkeypatch.setattr(module.ops, "get_indice_pairs", counting)
    work, settings = shell(24, 9.0), Settings("cpu", ("fp32",), (1,), 1)
    layer = next(layers.trials(work, settings)).competitors[0]
    cached = next(trial for trial in network.trials(work, settings) if "cached" in trial.shape).competitors[0]
    assert layer.name == cached.name == "spconv"
    for competitor, expected in ((layer, []), (cached, [False] * 4)):
        call = competitor.build()
        searched.clear()
        call()
        assert searched == expected
