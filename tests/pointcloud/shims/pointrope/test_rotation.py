"""The rotation by its defining equation, number by number."""

from __future__ import annotations

import math

import pytest
import torch

from pointcloud.shims.pointrope import pointrope


@pytest.mark.parametrize("width", [18, 20, 6, 4])
def test_pointrope(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 5, 3, width, dtype=torch.float64, generator=generator)
    cells = torch.randint(0, 900, (2, 5, 3), generator=generator)
    want, Q = tokens.clone(), width // 6
    for b in range(2):
        for n in range(5):
            for h in range(3):
                for axis in range(3):
                    for d in range(Q):
                        angle = 0.5 * int(cells[b, n, axis]) / 100 ** (d / Q)
                        i, j = 2 * Q * axis + d, 2 * Q * axis + Q + d
                        u, v = float(tokens[b, n, h, i]), float(tokens[b, n, h, j])
                        want[b, n, h, i] = u * math.cos(angle) - v * math.sin(angle)
                        want[b, n, h, j] = v * math.cos(angle) + u * math.sin(angle)
    turned = tokens.clone()
    pointrope(turned, cells, 100.0, 0.5)
    torch.testing.assert_close(turned, want)
    pointrope(turned, cells, 100.0, -0.5)
    torch.testing.assert_close(turned, tokens)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="tokens must be floating"):
        pointrope(torch.zeros(1, 2, 3, 6, dtype=torch.int64), torch.zeros(1, 2, 3).long(), 100.0, 1.0)
    with pytest.raises(ValueError, match=r"positions must be int \[1, 2, 3\]"):
        pointrope(torch.zeros(1, 2, 3, 6), torch.zeros(1, 2, 3), 100.0, 1.0)
