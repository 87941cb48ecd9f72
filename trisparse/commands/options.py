"""What the commands share: options, how typer fills an object with them, exit codes, and what becomes of an error.

Exit codes: 0 where all inputs were done, 1 where some or all of them failed, 2 where the command could not begin or go
on (wrong options, an unknown model, an unusable output), 130 where it was stopped.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from common_models.names import did_you_mean
from trisparse import terminal
from trisparse.dtypes import DTYPES

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Model = Annotated[str, typer.Option(help="A name that `trisparse models` lists, or a weights file.")]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command takes that answers inputs. A command's own options are a subclass, whose fields typer reads.

    Raises:
        ValueError: an option that is not one of its choices, or that would have no effect.
    """

    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")]
    model: Annotated[str | None, typer.Option(help="Network to compute with.")]
    dtype: Annotated[
        str, typer.Option(help="Compute in fp32, bf16, or auto: bf16 where the processor multiplies it faster.")
    ] = "auto"
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with; all cores by default.")] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False
    debug: Debug = False

    def __post_init__(self) -> None:
        check_choice("--dtype", self.dtype, DTYPES)
        if self.overwrite and not any(self.places):
            raise ValueError("--overwrite replaces a file: add --output")

    @property
    def places(self) -> tuple[Path | None, ...]:
        """What is written to."""
        return (self.output,)


Filled = TypeVar("Filled", bound=Options)


def filled_by_typer(options: type[Filled]) -> Callable[[Callable[[Any, Filled], int]], Callable[..., None]]:
    """Make a command of a function of inputs and options, which returns how many inputs failed.

    For typer the fields of `options` become parameters of the command, after the function's own first one. Errors and
    the number of failed inputs become exit codes here and nowhere else.
    """

    def decorate(function: Callable[[Any, Filled], int]) -> Callable[..., None]:
        inputs, _ = inspect.signature(function, eval_str=True).parameters.values()
        hints = get_type_hints(options, include_extras=True)
        parameters = [inputs] + [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)
        ]

        def command(**given: Any) -> None:
            with errors(given["debug"]):
                first = given.pop(inputs.name)
                chosen = options(**given)
                if chosen.threads is not None:  # else torch need not be loaded yet
                    from common_models.threads import set_threads

                    set_threads(chosen.threads)
                failed = function(first, chosen)
            if failed:
                raise typer.Exit(1)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """One line on stderr and exit code 2 for what a user can put right."""
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError) as error:
        terminal.complain(error, debug=debug)
        raise typer.Exit(2) from None


def check_choice(option: str, given: str, known: Sequence[str]) -> None:
    """Raises ValueError for a choice that there is not."""
    if given not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, got {given!r}{did_you_mean(given, known)}")
