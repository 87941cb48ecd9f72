"""The small language model: its text, its recipe, its training, and the weights that are shipped."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nlp.pretrained import load_pretrained, load_tokenizer
from nlp.training import text
from nlp.training.recipe import Recipe

pytest.importorskip("transformers")
from nlp.training import __main__ as command
from nlp.training import measure
from nlp.training.train import batch_of, build, learning_rate, tokens_of, train, train_tokenizer, windows

NAME = "llama-python-docs"
SMALL = Recipe(
    vocabulary=300, layers=1, hidden=32, heads=2, key_heads=1, feed_forward=32, context=32, steps=60, batch=4
)


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load_pretrained(NAME)


@pytest.fixture(scope="module")
def shown() -> list[str]:
    return text.training_texts()


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    return windows(tokens_of(load_tokenizer(NAME), text.held_out_texts()), 512)


def test_held_out_paragraphs_are_not_trained_on(shown: list[str]) -> None:
    held = text.held_out_texts()
    assert sum(map(len, held)) > 50_000 and sum(map(len, shown)) > 1_000_000
    everything = " ".join(" ".join(each.split()) for each in shown)
    paragraphs = [" ".join(p.split()) for each in held for p in each.split("\n\n")]
    long = [p for p in paragraphs if len(p) > 200]
    assert len(long) > 50 and not any(p in everything for p in long)
    assert text.digest(held) != text.digest(held[1:])


def test_tokens_are_the_texts() -> None:
    texts = ["A list of words.", "Ünïcode, too: 你好\n", ""]
    tokenizer = train_tokenizer(SMALL, texts)
    tokens = tokens_of(tokenizer, texts)
    assert tokenizer.decode(tokens, skip_special_tokens=False) == "".join(each + "<|end|>" for each in texts)
    assert tokenizer("A list")["input_ids"][0] == tokenizer.bos_token_id == 0


def test_every_pass_shows_the_whole_text() -> None:
    recipe = Recipe(context=9, batch=3, repeats_every=10**9)
    tokens = torch.arange(1, 100)
    n = (99 - 9) // 8
    rows = torch.cat([batch_of(tokens, recipe, step) for step in range(8)])
    assert (rows[:, 0] == 0).all() and (rows[1:, 1:].diff() == 1).all()
    for first in (0, n):
        begins = rows[first : first + n, 1].sort().values
        if first:  # row 0 is a repeated one
            assert begins.diff().tolist() == [8] * (n - 1)
    repeated = batch_of(tokens, Recipe(context=33, batch=1, repeats_every=1), 5)[0, 1:]
    periods = [p for p in range(1, 32) if torch.equal(repeated[p:], repeated[:-p])]
    assert periods and 4 <= periods[0] < 16


def test_learning_rate() -> None:
    recipe = Recipe(steps=100, warm_up=10)
    rates = [learning_rate(step, recipe) for step in range(101)]
    assert rates[0] == 0.1 and max(rates) == 1.0 == rates[9] == rates[10] and rates[100] == 0.0
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_heads_start_out_looking_at_the_previous_token_and_at_what_followed_the_last_time() -> None:
    model = build(Recipe()).eval()
    ids = torch.randint(3, 2048, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        probabilities = model(input_ids=ids, output_attentions=True).attentions[0][0]
        twice = torch.cat([ids, ids], 1)
        second = model(input_ids=twice, output_attentions=True).attentions[1][0]
    assert probabilities[0].diagonal(-1).mean() > 0.8 and probabilities[2].diagonal(-1).mean() < 0.1
    assert second[0].diagonal(-199).mean() > 0.2 and second[2].diagonal(-199).mean() < 0.02


def test_stopped_training_ends_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randint(3, 300, (4000,), generator=torch.Generator().manual_seed(0))
    recipe = Recipe(**{**vars(SMALL), "precision": "fp32"})
    whole = train(recipe, tokens, progress=False).state_dict()
    checkpoint = tmp_path / "checkpoint"

    def stop(step: int, recipe: Recipe) -> float:
        if step == 55:
            raise KeyboardInterrupt
        return learning_rate(step, recipe)

    with monkeypatch.context() as patch:
        patch.setattr("nlp.training.train.learning_rate", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tokens, checkpoint, progress=False)
    assert torch.load(checkpoint, weights_only=True)["done"] == 50
    resumed = train(recipe, tokens, checkpoint, progress=False).state_dict()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    with pytest.raises(ValueError, match="is the checkpoint of another run: its text is "):
        train(recipe, tokens + 1, checkpoint, progress=False)
    with pytest.raises(ValueError, match="is the checkpoint of another run: its steps is 60, here it is 70"):
        train(dataclasses.replace(recipe, steps=70), tokens, checkpoint, progress=False)
    checkpoint.write_bytes(b"not one")
    with pytest.raises(ValueError, match="not a checkpoint of this training"):
        train(recipe, tokens, checkpoint, progress=False)
    with pytest.raises(ValueError, match="at least 64 tokens"):
        train(recipe, tokens[:40], progress=False)


def test_command_trains_measures_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "training_texts", lambda: ["The quick brown fox. " * 20] * 20)
    monkeypatch.setattr(command, "held_out_texts", lambda: ["A lazy dog sleeps. " * 40])
    output = tmp_path / "small.safetensors"
    flags = ["--vocabulary", "300", "--layers", "1", "--hidden", "32", "--heads", "2", "--key-heads", "1"]
    flags += ["--context", "64", "--steps", "3", "--batch", "2", "--feed-forward", "32"]
    assert command.main(["-o", str(output), *flags]) == 0
    assert "minutes in all" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [output]
    card = load_pretrained(output).card
    assert card.recipe["steps"] == 3 and card.architecture == "LlamaForCausalLM"
    assert set(card.results["perplexity_by_share_kept"]) >= {"snapkv, sinks protected", "random, no sinks"}
    assert command.main(["--evaluate", str(output)]) == 0
    printed = capsys.readouterr().out
    again = json.loads(printed[printed.index("\n{\n") :])
    assert again["perplexity"] == card.results["perplexity"]
    with pytest.raises(SystemExit):
        command.main(["--evaluate", str(output), "--steps", "3"])
    assert command.main(["-o", str(output), "--heads", "3", "--hidden", "32"]) == 1
    assert "heads must divide hidden" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["-o", str(tmp_path / "nowhere" / "x.safetensors")])


def test_ngram_perplexities() -> None:
    """A sequence whose pairs are certain, and uniform single tokens."""
    cycle = torch.arange(8).repeat(500)
    got = measure.ngram_perplexities(cycle, cycle[:80], 8)
    assert math.isclose(got["unigram"], 8.0, abs_tol=0.01) and 1.0 < got["bigram"] < 1.1


def test_shipped_weights_beat_pairs_and_know_their_card(shipped: Any, held_out: torch.Tensor, shown: list[str]) -> None:
    results = shipped.card.results
    perplexity = measure.perplexity(shipped, held_out[:8])
    assert perplexity < 0.5 * results["ngram_perplexity"]["bigram"]
    if text.digest(shown) == shipped.card.recipe["text_sha256"]:
        whole = measure.perplexity(shipped, held_out)
        assert math.isclose(whole, results["perplexity"], rel_tol=0.01)


def test_shipped_weights_repeat_what_they_have_read(shipped: Any, held_out: torch.Tensor) -> None:
    """Text that they must look for far back: without it a cache that forgets would cost nothing."""
    text_ids = held_out[:4, 1:201]
    twice = torch.cat([torch.zeros(4, 1, dtype=torch.int64), text_ids, text_ids], 1)
    with torch.no_grad():
        losses = measure.token_losses(shipped(input_ids=twice).logits, twice)
    assert losses[:, 220:].mean() < 0.4 * losses[:, 20:200].mean()


def test_recipe() -> None:
    with pytest.raises(ValueError, match="precision must be bf16 or fp32, got 'fp16'"):
        Recipe(precision="fp16")
    with pytest.raises(ValueError, match="vocabulary must be at least 300"):
        Recipe(vocabulary=100)
    with pytest.raises(ValueError, match="context must be at least 2"):
        Recipe(context=1)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Recipe(steps=0)
