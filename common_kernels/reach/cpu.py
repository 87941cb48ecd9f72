"""A mask's reach on the CPU."""

from common_kernels.reach.reference import reach as reach
