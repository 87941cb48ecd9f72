"""Everything that decides what the demonstration network becomes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A training run on simulated sweeps; the same recipe gives the same network on the same machine and versions.

    Sweeps: `train_sweeps` scenes with seeds from 0, sensors in turn, plain and with the carrier's own returns in turn;
    held-out scenes have seeds from 1,000,000. Augmentation: rotation about z, mirroring, scale, tilt, height of the
    sensor; rings, points and intensities left out. AdamW, linear warm-up and cosine decay, cross-entropy with
    class weights plus Lovász-Softmax.
    """

    seed: int = 0
    width: float = 0.25
    depth: int = 14
    voxel_size: float = 0.15
    sensors: tuple[str, ...] = ("hdl32", "hdl64")
    train_sweeps: int = 1200
    test_sweeps: int = 60
    steps: int = 3800
    batch_size: int = 2
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    first_test_seed: int = 1_000_000
