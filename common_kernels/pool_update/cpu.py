"""A pool's update on the CPU."""

from common_kernels.pool_update.reference import pool_update as pool_update
