"""What a weights file says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of any network; each domain adds what its inputs and outputs are.

    Attributes:
        description: what it is for, in a sentence.
        architecture: name of the network class.
        license: of the weights, "unknown" where nobody says.
        recipe: how it was trained.
        results: what was measured on held-out data.
    """

    description: str
    architecture: str
    license: str = "unknown"
    recipe: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
