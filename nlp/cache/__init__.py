"""Pruning of the key-value cache for `generate`: `PrunedCache` and its policies.

`PrunedCache` is a class of transformers', which is loaded when the name is first asked for.
"""

from typing import TYPE_CHECKING, Any

from nlp.cache.policies import HeavyHitters, Policy, RandomTokens, Recent, SnapKV

if TYPE_CHECKING:
    from nlp.cache.pruned_cache import PrunedCache

__all__ = ["HeavyHitters", "Policy", "PrunedCache", "RandomTokens", "Recent", "SnapKV"]


def __getattr__(name: str) -> Any:
    if name != "PrunedCache":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nlp.pretrained import model_files

    model_files.transformers()  # or an ImportError that names the extra
    from nlp.cache.pruned_cache import PrunedCache

    return PrunedCache
