"""The command `trisparse doctor`."""

from __future__ import annotations

import typer

from trisparse.commands.options import Debug, errors


def doctor(debug: Debug = False) -> None:
    """Say what this machine has, and whether the kernels compile and agree with their references.

    Exit code 1 where a check fails.
    """
    with errors(debug):
        from trisparse.doctor import examine

        healthy = examine()
    if not healthy:
        raise typer.Exit(1)
