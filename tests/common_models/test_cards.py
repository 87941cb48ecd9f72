"""What every card says."""

from __future__ import annotations

import pytest

from common_models.cards import ModelCard


def test_fields_by_keyword_only() -> None:
    card = ModelCard(description="Labels sweeps", architecture="MinkUNet")
    assert (card.license, card.recipe, card.results) == ("unknown", {}, {})
    with pytest.raises(TypeError):
        ModelCard("Labels sweeps", "MinkUNet")  # type: ignore[misc]
