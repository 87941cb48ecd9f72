"""Maps over any offsets, against a search through a dictionary of cells."""

from __future__ import annotations

import itertools

import pytest
import torch

from common_kernels import gather_gemm, kernel_map
from common_kernels.kernel_map.offsets import floor_cells, kernel_offsets, offset_map, reached_cells


def cells(n: int, shape: list[int], batch: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    every = torch.tensor(list(itertools.product(range(batch), *map(range, shape))), dtype=torch.int32)
    return every[torch.randperm(len(every), generator=generator)[:n]]


def expected_table(coords: torch.Tensor, targets: torch.Tensor, offsets: torch.Tensor, stride: list[int]) -> list:
    row_of = {tuple(cell): row for row, cell in enumerate(coords.tolist())}
    return [
        [row_of.get((b, *(t * s + o for t, s, o in zip(at, stride, tap))), -1) for b, *at in targets.tolist()]
        for tap in offsets.tolist()
    ]


@pytest.mark.parametrize("ndim, stride", [(1, [2]), (2, [1, 3]), (3, [1, 1, 1]), (3, [2, 2, 2]), (4, [2, 1, 2, 1])])
def test_any_offsets_to_any_targets(ndim: int, stride: list[int]) -> None:
    shape, target_shape = [7, 6, 5, 4][:ndim], [6, 5, 6, 3][:ndim]
    coords, targets = cells(60, shape, 2, 0), cells(50, target_shape, 2, 1)
    offsets = torch.randint(-4, 9, (5, ndim), generator=torch.Generator().manual_seed(2))
    found = offset_map(coords, shape, targets, target_shape, offsets, stride, batch_size=2)
    assert found.table.tolist() == expected_table(coords, targets, offsets, stride)
    assert (found.n_in, found.shape, found.symmetric) == (len(coords), tuple(target_shape), False)


@pytest.mark.parametrize("kernel, dilation", [(3, 1), ((3, 1, 5), (2, 1, 1)), (2, 1), ((2, 3, 4), (1, 2, 3))])
def test_the_cube_is_the_submanifold_map_of_odd_kernels(kernel: object, dilation: object) -> None:
    coords = cells(150, [8, 7, 6], 2, 3)
    offsets = kernel_offsets(kernel, 3, dilation)
    found = offset_map(coords, [8, 7, 6], coords, [8, 7, 6], offsets, batch_size=2)
    usual = kernel_map(coords, [8, 7, 6], kernel, 1, 0, dilation, batch_size=2)
    sizes = [kernel] * 3 if isinstance(kernel, int) else list(kernel)
    if all(k % 2 for k in sizes):
        assert torch.equal(found.table, usual.table) and found.symmetric
    else:
        assert found.table.tolist() == expected_table(coords, coords, offsets, [1, 1, 1]) and not found.symmetric


def test_the_cross_lists_the_centre_then_axis_by_axis() -> None:
    assert kernel_offsets(3, 2, region="cross").tolist() == [[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]]
    assert kernel_offsets((1, 2), 2, (1, 3), region="cross").tolist() == [[0, 0], [0, 3]]


@pytest.mark.parametrize("mirrored", [True, False])
def test_gradients(mirrored: bool) -> None:
    coords = cells(40, [6, 6], 2, 4)
    offsets = kernel_offsets(3, 2, region="cross") if not mirrored else kernel_offsets(3, 2)
    found = offset_map(coords, [6, 6], coords, [6, 6], offsets, batch_size=2)
    x = torch.randn(40, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(offsets), 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: gather_gemm(x, found, w), (x, weight))


def test_cells_of_outputs() -> None:
    coords = torch.tensor([[0, 5, 0], [0, 4, 1], [1, 0, 3]], dtype=torch.int32)
    assert floor_cells(coords, [3, 2], 2).tolist() == [[0, 2, 0], [1, 0, 1]]
    reached = reached_cells(coords, [6, 4], torch.tensor([[0, 0], [1, 0], [0, -1]]), 1, batch_size=2)
    assert reached.tolist() == [[0, 3, 1], [0, 4, 0], [0, 4, 1], [0, 4, 2], [0, 5, 0], [0, 5, 1], [1, 0, 3]]
    assert reached.dtype == torch.int32


def test_int64_coordinates_are_not_written_to() -> None:
    coords, targets = cells(20, [6, 6], 2, 5).long(), cells(20, [3, 3], 2, 6)[:10].long()
    before = coords.clone(), targets.clone()
    offsets = kernel_offsets(3, 2)
    found = offset_map(coords, [6, 6], targets, [3, 3], offsets, 2, batch_size=2)
    assert found.table.tolist() == expected_table(coords, targets, offsets, [2, 2])
    reached_cells(coords, [3, 3], offsets, 2, batch_size=2)
    floor_cells(coords, [3, 3], 2)
    assert torch.equal(coords, before[0]) and torch.equal(targets, before[1])


def test_empty() -> None:
    none = torch.empty(0, 3, dtype=torch.int32)
    some = torch.tensor([[0, 1, 1]], dtype=torch.int32)
    offsets = kernel_offsets(3, 2)
    assert offset_map(none, [4, 4], some, [4, 4], offsets, batch_size=1).table.tolist() == [[-1]] * 9
    assert offset_map(some, [4, 4], none, [4, 4], offsets, batch_size=1).table.shape == (9, 0)
    assert len(floor_cells(none, [2, 2], 2)) == len(reached_cells(none, [2, 2], offsets, 2, batch_size=1)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": torch.zeros(0, 2, dtype=torch.int32)}, "offsets must be integers"),
        ({"offsets": torch.zeros(3, 3, dtype=torch.int32)}, "offsets must have 2 columns"),
        ({"offsets": torch.zeros(3, 2)}, "offsets must be integers"),
        ({"targets": torch.tensor([[0, 9, 0]], dtype=torch.int32)}, "row 0 is"),
        ({"targets": torch.tensor([[0, 1, 0]] * 2, dtype=torch.int32)}, "unique"),
        ({"coords": torch.tensor([[0, 1, 0]] * 2, dtype=torch.int32)}, "unique"),
        ({"coords": torch.tensor([[2, 1, 0]], dtype=torch.int32)}, "batch_size 1"),
        ({"targets": torch.zeros(1, 2, dtype=torch.int32)}, "coords and targets"),
        ({"stride": 0}, "stride must be"),
    ],
)
def test_wrong_input_is_named(change: dict, message: str) -> None:
    usual = {
        "coords": torch.tensor([[0, 1, 0]], dtype=torch.int32),
        "shape": [4, 4],
        "targets": torch.tensor([[0, 1, 1]], dtype=torch.int32),
        "target_shape": [4, 4],
        "offsets": kernel_offsets(3, 2),
        "stride": 1,
    }
    with pytest.raises(ValueError, match=message):
        offset_map(**{**usual, **change}, batch_size=1)


def test_a_grid_at_the_edge_of_the_keys() -> None:
    far = 2**31 - 2
    coords = torch.tensor([[0, far, far], [0, far - 1, far]], dtype=torch.int32)
    offsets = torch.tensor([[1, 0], [-1, 0], [0, 5]])
    found = offset_map(coords, [2**31 - 1] * 2, coords, [2**31 - 1] * 2, offsets, batch_size=1)
    assert found.table.tolist() == [[-1, 0], [1, -1], [-1, -1]]


def test_opcheck() -> None:
    arguments = (cells(9, [6, 5], 2, 6), cells(7, [3, 5], 2, 7), kernel_offsets(2, 2).long(), [6, 5], [3, 5], [2, 1], 2)
    torch.library.opcheck(torch.ops.trisparse.offset_table.default, arguments)


def test_a_traced_map_serves_other_clouds() -> None:
    weight = torch.randn(5, 2, 3, requires_grad=True)

    def multiply(x: torch.Tensor, coords: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        taps = torch.tensor([[0, 0], [0, 1], [1, 0], [3, 2], [-1, -2]])
        return gather_gemm(x, offset_map(coords, [9, 9], targets, [9, 9], taps, batch_size=1), weight)

    def given(n: int, m: int, batch: int = 1) -> tuple[torch.Tensor, ...]:
        return torch.randn(n, 2, requires_grad=True), cells(n, [9, 9], batch, n), cells(m, [9, 9], 1, m), weight

    traced = torch.jit.trace(multiply, given(30, 20), check_trace=False)
    for n, m in ((30, 20), (5, 70), (81, 3)):
        inputs = given(n, m)
        out, expected = traced(*inputs), multiply(*inputs)
        assert torch.equal(out, expected)
        grads = [torch.autograd.grad(each.square().sum(), (inputs[0], weight)) for each in (out, expected)]
        torch.testing.assert_close(*grads)
    with pytest.raises(Exception, match="coords must lie in batch_size 1"):
        traced(*given(90, 20, batch=2))
