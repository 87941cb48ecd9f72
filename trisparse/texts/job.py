"""What a run over texts does with each of them: the job, and what embedding and labelling share of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from common_models.errors import ArgumentError
from trisparse import zoo
from trisparse.dtypes import computed
from trisparse.output.sinks import Column, Sink, check_suffix, sink
from trisparse.policies import parse_prune
from trisparse.texts.sources import Source
from trisparse.version import __version__

if TYPE_CHECKING:
    from nlp.prune import Policy
    from trisparse.commands.text_options import TextOptions

# What arguments of the networks are called on the command line.
OPTIONS: Mapping[str, str] = {"name_or_path": "--model", "model": "--model", "max_length": "--max-length"}


class Model(Protocol):
    """What answers texts, in their order."""

    def stream(self, texts: Iterable[str]) -> Iterator[Any]: ...


class TextJob(ABC):
    """A command on texts: which network answers, and how its answers become rows of a file.

    Args:
        sources: the files to read.

    Attributes:
        output: file to write; None prints the rows.
        reading: how the files are read.
        refuses_long: whether a text beyond the network's limit is an error of its file.
        prunes: whether the network removes tokens; those that it keeps are counted.

    Raises:
        ValueError: options that cannot be, alone or on these files.
        ImportError: the output needs a package that is not installed.
    """

    command: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, options: TextOptions, sources: Sequence[Source]) -> None:
        if options.output is not None:
            check_suffix(options.output, self.suffixes)
        self.options = options
        self.output = options.output
        self.overwrite = options.overwrite
        self.reading = options.reading(sources)
        self.dtype = computed(options.dtype)
        self._prune: str | None = None
        self._policy: Policy | None = None
        if options.prune is not None:
            self._prune, self._policy = parse_prune(options.prune)
        self.prunes = self._policy is not None
        # A text that is too long is an error of its file alone, hence found out by the run and not in the network.
        self.refuses_long = options.overflow == "error"

    def load(self) -> Model:
        """The network; called once there is something to read.

        Raises:
            ValueError: no such network, or one that an option does not fit; the message names the option.
        """
        options = self.options
        further: dict[str, Any] = {} if options.max_length is None else {"max_length": options.max_length}
        further["overflow"] = "truncate" if self.refuses_long else options.overflow
        further["max_tokens"] = options.batch_tokens
        with self._in_options():
            return self._load(options.model, dtype=self.dtype, prune=self._policy, download=options.download, **further)

    @abstractmethod
    def _load(self, model: str, **options: Any) -> Model: ...

    @abstractmethod
    def columns(self, model: Any) -> list[Column]:
        """Columns of a row between those that say of which document it is and those that count its tokens."""

    @abstractmethod
    def values(self, answer: Any) -> dict[str, Any]:
        """What fills `columns`."""

    def sink(self, model: Any) -> Sink:
        """For the rows that `row` makes."""
        name = [] if self.reading.id_column is None else [Column("id", "text")]
        kept = [Column("kept", "int")] if self.prunes else []
        columns = [
            Column("file", "text"),
            Column("row", "int"),
            *name,
            *self.columns(model),
            Column("tokens", "int"),
            Column("truncated", "bool"),
            *kept,
        ]
        return sink(self.output, columns)

    def row(self, answer: Any) -> dict[str, Any]:
        """A row from an answer, without its file, row and id."""
        counts = {"tokens": answer.tokens, "truncated": bool(answer.truncated), "kept": answer.kept}
        return {**self.values(answer), **counts}

    @property
    def settings(self) -> dict[str, Any]:
        """What the results depend on beside the texts, as JSON."""
        options = self.options
        return {
            "command": self.command,
            "model": options.model,
            "dtype": self.dtype,
            "max-length": options.max_length,
            "overflow": options.overflow,
            "prune": self._prune,
            "column": self.reading.column,
            "id-column": self.reading.id_column,
            "whole-file": self.reading.whole_file,
            **zoo.fingerprint(options.model),
        }

    def metadata(self, model: Any) -> dict[str, str]:
        """What is written beside the rows."""
        pruned = {} if self._prune is None else {"prune": self._prune}
        return {
            "model": self.options.model,
            "dtype": self.dtype,
            "version": __version__,
            "overflow": self.options.overflow,
            **pruned,
        }

    @contextmanager
    def _in_options(self) -> Iterator[None]:
        """Errors about an argument name the option of the command that gave it."""
        try:
            yield
        except ArgumentError as error:
            if error.argument in OPTIONS:
                raise ValueError(error.named(OPTIONS[error.argument], "--download")) from error
            policy = self._policy
            # What a policy says of a network is about the policy itself, one of its fields, or the argument it came by.
            if policy is not None and error.argument in {"prune", type(policy).__name__, *vars(policy)}:
                raise ValueError(f"--prune {self._prune}: {error}") from error
            raise
