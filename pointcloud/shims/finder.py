"""The import machinery that serves the stand-ins under the names of the originals."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, NamespaceLoader, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from common_models.names import did_you_mean

HOME = "pointcloud.shims"
KNOWN = ("MinkowskiEngine", "cumm", "flash_attn", "pointrope", "spconv", "torch_scatter", "torchsparse")


class StandInError(ImportError):
    """A module or a name that a stand-in does not have."""


def stand_ins() -> list[str]:
    """Names of the packages that `install` can stand in for."""
    folder = Path(__file__).parent
    return [name for name in KNOWN if (folder / name / "__init__.py").is_file()]


def install(names: Iterable[str] | None = None, *, replace: bool | Iterable[str] = False) -> list[str]:
    """Let imports find the stand-ins where the originals are not installed. A second call adds to the first.

    Args:
        names: packages to stand in for; all of `stand_ins()` by default.
        replace: True to go before installed originals, too; or the names of those. Originals that are imported already
            are taken out of sys.modules; who holds them keeps them.

    Returns:
        The names that now mean a stand-in.

    Raises:
        TypeError: names that are one string.
        ValueError: a name that there is no stand-in for.
    """
    chosen = _checked(stand_ins() if names is None else names, "names")
    before = set(chosen) if replace is True else set(_checked(replace, "replace")) if replace else set()
    finder = _installed() or _Finder()
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
    finder.serves |= set(chosen) | before
    finder.replaces |= before
    for name in before:
        finder.evict(name)
    importlib.invalidate_caches()
    return [name for name in sorted(finder.serves) if finder.is_ours(name)]


def uninstall() -> None:
    """Undo `install`: the names mean what they meant before. Without an `install` nothing happens."""
    finder = _installed()
    if finder is None:
        return
    sys.meta_path.remove(finder)
    for name in list(sys.modules):
        if name.partition(".")[0] in finder.serves and _is_stand_in(sys.modules[name]):
            del sys.modules[name]
    sys.modules.update(finder.evicted)
    importlib.invalidate_caches()


def _checked(names: Any, argument: str) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{argument} must be a list of package names, got {names!r}")
    chosen, known = list(names), stand_ins()
    for name in chosen:
        if name not in known:
            hint = did_you_mean(name, known) if isinstance(name, str) else ""
            raise ValueError(f"{argument} must be among {', '.join(known)}, got {name!r}{hint}")
    return chosen


def _installed() -> _Finder | None:
    return next((each for each in sys.meta_path if isinstance(each, _Finder)), None)


def _is_stand_in(module: ModuleType | None) -> bool:
    return getattr(module, "__name__", "").startswith(HOME + ".")


class _Finder:
    """A meta path finder: `torchsparse.nn` is the very module `pointcloud.shims.torchsparse.nn`."""

    def __init__(self) -> None:
        self.serves: set[str] = set()
        self.replaces: set[str] = set()
        self.evicted: dict[str, ModuleType] = {}

    def is_ours(self, top: str) -> bool:
        """Whether an import of the package finds the stand-in."""
        if top not in self.serves:
            return False
        if top in sys.modules:
            return _is_stand_in(sys.modules[top])
        return top in self.replaces or not self._has_original(top)

    def _has_original(self, top: str) -> bool:
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec = find(top, None)
            # A folder of that name without an __init__.py, as in a checkout, is no package.
            if spec is not None and spec.loader is not None and not isinstance(spec.loader, NamespaceLoader):
                return True
        return False

    def evict(self, top: str) -> None:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == top and not _is_stand_in(module):
                self.evicted[name] = sys.modules.pop(name)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # `from flash_attn import x` asks for the submodule x by the module's own name.
        own_name = name.startswith(HOME + ".")
        alias = name.removeprefix(HOME + ".")
        top = alias.partition(".")[0]
        if (own_name and "." not in alias) or not self.is_ours(top):
            return None
        found = self._source(alias, path if own_name else None)
        if found is None:
            raise StandInError(
                f"{alias} is not part of Trisparse's stand-in for {top}, which holds only what models call", name=name
            )
        if own_name:
            return found
        folders = found.submodule_search_locations
        spec = ModuleSpec(name, _Loader(found), origin=found.origin, is_package=folders is not None)
        if folders is not None:
            spec.submodule_search_locations = list(folders)
        return spec

    def _source(self, alias: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """The spec of the file behind `torchsparse.nn`; None where there is none."""
        own_name = f"{HOME}.{alias}"
        if path is not None:
            return PathFinder.find_spec(own_name, path)
        try:
            return importlib.util.find_spec(own_name)
        except ImportError:
            return None

    def find_distributions(self, context: Any) -> Iterable[importlib.metadata.Distribution]:
        """Answer `importlib.metadata.version("torch_scatter")` and the like; never part of a listing."""
        wanted = getattr(context, "name", None)
        if wanted is None:
            return []
        normal = wanted.replace("-", "_").lower()
        return [_Distribution(top) for top in sorted(self.serves) if top.lower() == normal and self.is_ours(top)]


class _Loader(Loader):
    """Gives the stand-in's module under the original's name."""

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec = spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.spec.name)
        if "__getattr__" not in vars(module):
            vars(module)["__getattr__"] = _missing(spec.name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        alias = module.__spec__.name
        module.__spec__ = self.spec  # the machinery has put the alias's there; relative imports need this one
        # A later import of a submodule would bind its name in the package, over a function of the same name
        # (torch_scatter.scatter).
        for name, loaded in list(sys.modules.items()):
            if name.startswith(self.spec.name + "."):
                sys.modules[alias + name.removeprefix(self.spec.name)] = loaded


def _missing(module_name: str) -> Any:
    def missing(name: str) -> Any:
        top = module_name.partition(".")[0]
        raise AttributeError(f"{module_name}.{name} is not part of Trisparse's stand-in for {top}")

    return missing


class _Distribution(importlib.metadata.Distribution):
    """What importlib.metadata says of a stand-in."""

    def __init__(self, top: str) -> None:
        self.top = top

    def read_text(self, filename: str) -> str | None:
        if filename not in ("METADATA", "PKG-INFO"):
            return None
        version = importlib.import_module(f"{HOME}.{self.top}").__version__
        return f"Metadata-Version: 2.1\nName: {self.top}\nVersion: {version}\nSummary: Trisparse's stand-in\n"

    def locate_file(self, path: str | os.PathLike[str]) -> Any:
        return Path(__file__).parent / self.top / path
