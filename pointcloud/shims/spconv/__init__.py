"""spconv 2.3's modules and names on Trisparse: thin re-exports, and refusals that name what does not exist here.

`pointcloud.shims.install()` serves it as `spconv` where the real one is missing.
"""

from pointcloud.shims.spconv import constants, core, cppconstants, debug_utils, tools, utils
from pointcloud.shims.spconv.core import AlgoHint, ConvAlgo

# The version whose API this is. Code compares it as a string and as numbers, so nothing is added to it.
__version__ = "2.3.8"
SPCONV_VERSION_NUMBERS = [2, 3, 8]

__all__ = [
    "SPCONV_VERSION_NUMBERS",
    "AlgoHint",
    "ConvAlgo",
    "__version__",
    "constants",
    "core",
    "cppconstants",
    "debug_utils",
    "tools",
    "utils",
]
