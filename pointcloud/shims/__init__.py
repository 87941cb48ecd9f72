"""Stand-ins for compiled packages of the field: `install()` lets code that imports those find Trisparse's own.

    import pointcloud.shims
    pointcloud.shims.install()
    import torch_scatter  # the real one where it is installed, else the stand-in

`python -m pointcloud.shims SCRIPT ARGS...` runs a script so, without a change to it.
"""

from pointcloud.shims.finder import StandInError, install, stand_ins, uninstall

__all__ = ["StandInError", "install", "stand_ins", "uninstall"]
