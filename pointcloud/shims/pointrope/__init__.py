"""pointrope, the compiled rotation of LitePT's queries and keys by their points' cells."""

from pointcloud.shims.pointrope.rotation import pointrope

__version__ = "0.0.0+trisparse"

__all__ = ["__version__", "pointrope"]
