"""`python -m trisparse`: the command where it is not installed."""

import importlib.util
import sys

if __name__ == "__main__":
    if importlib.util.find_spec("typer") is None:
        sys.exit("trisparse: the command line needs typer: pip install typer")
    from trisparse.cli import app

    app(prog_name="trisparse")
