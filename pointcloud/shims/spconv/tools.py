"""spconv.tools: its timer, which measures nothing here."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from pointcloud.shims.spconv.cppconstants import CPU_ONLY_BUILD

__all__ = ["CPU_ONLY_BUILD", "CUDAKernelTimer", "nullcontext"]


class CUDAKernelTimer:
    """Accepted and never enabled: `torch.profiler` sees the operators."""

    def __init__(self, enable: bool = True) -> None:
        self.enable = False

    def namespace(self, name: str) -> AbstractContextManager[None]:
        """A context that does nothing."""
        return nullcontext()

    def record(self, name: str, stream: int = 0) -> AbstractContextManager[None]:
        """A context that does nothing."""
        return nullcontext()

    def get_all_pair_time(self) -> dict[str, float]:
        """No times."""
        return {}

    @staticmethod
    def collect_by_name(name: str, res: dict[str, float]) -> dict[str, float]:
        """The entries one of whose parts (split at dots) is the name."""
        return {key: value for key, value in res.items() if name in key.split(".")}
