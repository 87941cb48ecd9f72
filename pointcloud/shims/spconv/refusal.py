"""Names of spconv that can be imported here and refuse to be used."""

from __future__ import annotations

from typing import Any, NoReturn


class _Refusing(type):
    """A class whose every use is an error that names it, so that code which only imports it runs."""

    reason: str

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        cls._refuse()

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        cls._refuse()

    def _refuse(cls) -> NoReturn:
        raise NotImplementedError(f"{cls.__module__}.{cls.__name__} is not available: {cls.reason}")


def refused(module: str, name: str, reason: str) -> Any:
    """A stand-in for the function or class `name` of spconv's `module`: it raises NotImplementedError when used."""
    return _Refusing(name, (), {"__module__": module, "__qualname__": name, "reason": reason})


def refuse(namespace: dict[str, Any], names: str, reason: str) -> None:
    """Define `names` (apart by blanks) in a module's globals, each refused for the reason."""
    module = namespace["__name__"].removeprefix("pointcloud.shims.")
    for name in names.split():
        namespace[name] = refused(module, name, reason)
