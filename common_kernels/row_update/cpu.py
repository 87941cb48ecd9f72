"""Row updates on the CPU."""

from common_kernels.row_update.reference import update_rows as update_rows
