"""spconv.debug_utils."""

from pointcloud.shims.spconv.constants import SPCONV_DEBUG_SAVE_PATH
from pointcloud.shims.spconv.refusal import refused

spconv_save_debug_data = refused(
    "spconv.debug_utils", "spconv_save_debug_data", "nothing is saved for a report; errors say what they were given"
)

__all__ = ["SPCONV_DEBUG_SAVE_PATH", "spconv_save_debug_data"]
