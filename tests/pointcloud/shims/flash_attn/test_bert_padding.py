"""Rows leave their padding and come back to it."""

import torch

from pointcloud.shims.flash_attn.bert_padding import index_first_axis, pad_input, unpad_input


def test_unpad_then_pad() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 2)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    rows, indices, offsets, longest, used = unpad_input(x, mask)
    assert offsets.tolist() == [0, 3, 3, 8] and longest == 5 and used.tolist() == [3, 0, 5]
    assert torch.equal(rows, x[mask.bool()])
    assert torch.equal(index_first_axis(x.flatten(0, 1), indices), rows)
    assert torch.equal(pad_input(rows, indices, 3, 5), x * mask[..., None])
