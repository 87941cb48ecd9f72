"""What pruning leaves of a text, and the picture of it."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import nlp
from nlp import picture
from nlp.picture import draw_survivors, survivors
from nlp.prune import Cascade, Merge, Random

from . import tiny_models

POLICIES = {
    "dropped": Cascade(0.3, min_tokens=8),
    "merged": Merge(0.3, min_tokens=8),
    "random": Random(0.5, min_tokens=8),
}
TEXT = "The film was great, and the plot was not; we loved it! A $5 actor\nmay_have <b>seen</b> this scene."


def accelerated(policy: Any = None, **options: Any) -> Any:
    return nlp.accelerate(tiny_models.network("bert"), prune=policy, **options)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_survivors(policy: Any, side: str) -> None:
    model, batch = accelerated(policy), tiny_models.padded(side=side, extra=2)
    found = survivors(model, batch)
    out = model(**batch)
    mask = batch["attention_mask"].bool()
    own = torch.arange(mask.shape[1])
    assert found.shape == (3, *mask.shape) and found.dtype == torch.int64
    assert bool((found[:, ~mask] == -1).all())
    alive = found == own
    assert torch.equal(alive.sum(2), out.kept[:-1]) and int(out.kept[-1, 2]) < 200
    assert bool((alive[1:] <= alive[:-1]).all())
    for i, row in enumerate(out.token_index):
        assert torch.equal(alive[-1, i].nonzero()[:, 0], row[row >= 0])
    others = ~alive & mask
    if not isinstance(policy, Merge):
        assert bool((found[others] == -1).all())
        return
    # Whoever stands for a token is alive, and both have one state in the end.
    assert bool(alive.gather(2, found.clamp(min=0))[others].all())
    state = out.last_hidden_state
    same = state.gather(1, found[-1].clamp(min=0)[..., None].expand_as(state))
    assert torch.equal(same[mask], state[mask])
    assert len(state[2, mask[2]].unique(dim=0)) == int(alive[-1, 2].sum())


def test_survivors_where_left_tokens_keep_their_states() -> None:
    batch = tiny_models.padded()
    model = nlp.accelerate(tiny_models.network("bert", "ForTokenClassification"), prune=POLICIES["dropped"])
    assert torch.equal(survivors(model, batch), survivors(accelerated(POLICIES["dropped"]), batch))


def test_all_survive_without_a_policy() -> None:
    batch = tiny_models.padded()
    own = torch.arange(200).expand(6, -1).masked_fill(batch["attention_mask"] == 0, -1)
    assert torch.equal(survivors(accelerated(), batch), own.expand(3, -1, -1))


def test_survivors_leave_no_hooks() -> None:
    model = accelerated(POLICIES["dropped"])
    before = [len(layer._forward_pre_hooks) for layer in model.encoder.layer]
    survivors(model, tiny_models.padded())
    with pytest.raises(IndexError):
        survivors(model, {"input_ids": torch.full((1, 20), 1_000)})
    assert [len(layer._forward_pre_hooks) for layer in model.encoder.layer] == before


def test_survivors_refuse() -> None:
    with pytest.raises(TypeError, match=r"model must be accelerated \(nlp.accelerate\), got BertModel"):
        survivors(tiny_models.network("bert"), tiny_models.padded())
    with pytest.raises(ValueError, match="batch must hold input_ids, got attention_mask"):
        survivors(accelerated(), {"attention_mask": torch.ones(1, 2)})


@pytest.mark.parametrize("policy", [*POLICIES.values(), None], ids=[*POLICIES, "nothing"])
def test_draw(policy: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    path = tmp_path / "text.png"
    draw_survivors(accelerated(policy), tiny_models.tokenizer(), TEXT, path, title="A $title$")
    pixels = imread(path)
    assert pixels.shape[1] == 1600 and pixels.shape[0] > 300 and [p.name for p in tmp_path.iterdir()] == ["text.png"]
    assert len({tuple(color) for color in pixels[::7, ::7, :3].reshape(-1, 3).tolist()}) > 5


def test_draw_as_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_survivors(accelerated(POLICIES["merged"]), tiny_models.tokenizer(), TEXT, tmp_path / "text.svg")
    assert (tmp_path / "text.svg").read_text().startswith("<?xml")


def test_draw_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    model, tokenizer, path = accelerated(), tiny_models.tokenizer(), tmp_path / "x.png"
    with pytest.raises(TypeError, match="text must be a str, got list"):
        draw_survivors(model, tokenizer, [TEXT], path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="text must have tokens to be drawn, got '  '"):
        draw_survivors(model, tokenizer, "  ", path)
    with pytest.raises(TypeError, match="model must be accelerated"):
        draw_survivors(tiny_models.network("bert"), tokenizer, TEXT, path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'trisparse\[nlp\]'"):
        draw_survivors(model, tokenizer, TEXT, path)
    assert not path.exists()


def test_every_letter_has_its_place() -> None:
    pytest.importorskip("matplotlib")
    text = f"{TEXT} {'unbreakable' * 30} end"
    spans = tiny_models.tokenizer(512)([text], return_offsets_mapping=True)["offset_mapping"][0]
    pieces, lines = picture._laid_out(text, spans)
    assert "".join(piece.text for piece in pieces) == "".join(text.split())
    assert {piece.token for piece in pieces} - {-1} == {i for i, (a, b) in enumerate(spans) if a < b}
    assert {piece.line for piece in pieces} == set(range(lines)) and lines > 2
    for a, b in pairwise(pieces):
        assert b.x + b.width <= 1600 - 56
        assert (b.line == a.line and b.x >= a.x + a.width - 1e-6) or (b.line == a.line + 1 and b.x == 56)


def test_groups_are_named_by_size() -> None:
    standing = torch.tensor([0, 1, 1, 1, 4, 4, -1, 7])
    text = "x the the of a b c d"
    spans = [(i, i + n) for i, n in ((0, 1), (2, 3), (6, 3), (10, 2), (13, 1), (15, 1), (17, 1), (19, 1))]
    assert picture._groups(standing, spans, text) == [(1, "the ×2   of"), (4, "a   b")]
