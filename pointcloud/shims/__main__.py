"""`python -m pointcloud.shims SCRIPT ARGS...` and `... -m MODULE ARGS...`: run code as it is, on the stand-ins."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from pointcloud.shims.finder import install, stand_ins


def main(arguments: Sequence[str] | None = None) -> None:
    """Install the stand-ins, then run the script or module with its own arguments as `__main__`."""
    parser = argparse.ArgumentParser(prog="python -m pointcloud.shims", description=__doc__)
    parser.add_argument(
        "--replace",
        default="",
        metavar="NAMES",
        help=f"packages, separated by commas, that the stand-ins replace although installed: {', '.join(stand_ins())}",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="the next argument names a module")
    parser.add_argument("target", metavar="SCRIPT", help="the script, or with -m the module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="its own arguments")
    options = parser.parse_args(arguments)
    try:
        install(replace=[name for name in options.replace.split(",") if name])
    except ValueError as error:
        parser.error(str(error))
    if options.module:
        sys.argv = [options.target, *options.arguments]
        sys.path.insert(0, "")
        runpy.run_module(options.target, run_name="__main__", alter_sys=True)
        return
    if not Path(options.target).is_file():
        parser.error(f"SCRIPT must be a file, got {options.target}")
    sys.argv = [options.target, *options.arguments]
    sys.path.insert(0, str(Path(options.target).resolve().parent))
    runpy.run_path(options.target, run_name="__main__")


if __name__ == "__main__":
    main()
