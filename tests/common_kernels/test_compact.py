import numpy as np
import pytest
import torch

from common_kernels.compact import compact, reference
from tests.common_kernels.aot import TARGETS, compile_kernel

SIZES = [0, 1, 5, 1000, 1024, 1025, 40_000, 300_001]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("n", SIZES)
def test_equals_numpy(n, share, device):
    mask = torch.rand(n) < share
    index = compact(mask.to(device))
    assert index.dtype == torch.int32 and index.device.type == device
    assert np.array_equal(index.cpu().numpy(), np.flatnonzero(mask.numpy()))


def test_strided_mask(device):
    mask = (torch.rand(500, 3, device=device) < 0.3)[:, 1]
    assert torch.equal(compact(mask), reference.compact(mask.contiguous()))


@pytest.mark.parametrize("place", [0, 1, 16_383, 16_384, 99_999])
def test_one_row(place, device):
    mask = torch.zeros(100_000, dtype=torch.bool, device=device)
    mask[place] = True
    assert compact(mask).tolist() == [place]


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"mask must be bool \[N\], got float32 \[3\]"):
        compact(torch.zeros(3))
    with pytest.raises(ValueError, match=r"mask must be bool \[N\], got bool \[3, 2\]"):
        compact(torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shorter than 2\*\*31"):
        compact(torch.zeros(1, dtype=torch.bool).expand(2**31))


@pytest.mark.parametrize("n", [0, 7])
def test_opcheck(n, device):
    torch.library.opcheck(torch.ops.trisparse.compact.default, (torch.rand(n, device=device) < 0.5,))


def test_compiles_as_one_graph(device):
    def kept(x):
        index = compact(x > 0)
        return index * 2

    x = torch.randn(100, device=device)
    assert torch.equal(torch.compile(kept, fullgraph=True, backend="aot_eager")(x), kept(x))


@pytest.mark.parametrize("n", [0, 1, 5, 1024, 1025, 5000])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_gpu(n, share, kernel_device, poisoned_memory):
    from common_kernels.compact import gpu

    mask = torch.rand(n, device=kernel_device) < share
    assert torch.equal(gpu.compact(mask), reference.compact(mask))


def test_gpu_writes_only_its_rows(kernel_device, guarded_empty):
    from common_kernels.compact import gpu

    mask = torch.rand(3000, device=kernel_device) < 0.4
    mask[-5:] = False  # rows behind the last one kept, whose place would be behind the output
    expected = reference.compact(mask)
    out = guarded_empty(len(expected), dtype=torch.int32, device=kernel_device)
    assert gpu.compact(mask, out) is out
    assert torch.equal(out, expected)


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_for(target):
    from common_kernels.compact import gpu

    blocks = {"BLOCK": gpu.BLOCK}
    compile_kernel(gpu.count_kernel, target, {"counts_ptr": "*i64", "mask_ptr": "*i1", "n": "i32"}, blocks,
                   unaligned=["counts_ptr"])  # fmt: skip
    compile_kernel(gpu.write_kernel, target, {"out_ptr": "*i32", "starts_ptr": "*i64", "mask_ptr": "*i1", "n": "i32"},
                   blocks)  # fmt: skip
