"""Trisparse: point-cloud, video and language models made fast by not computing what carries no information.

This package stands on top of the domains: one loader for all pretrained networks, the command line and the
demonstration. The domains are imported on their own: `import pointcloud`.
"""

from trisparse.version import __version__
from trisparse.zoo import list_pretrained, load_pretrained

__all__ = ["__version__", "list_pretrained", "load_pretrained"]
