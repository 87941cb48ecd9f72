"""PrunedCache: what DynamicCache does where nothing is evicted, and after an eviction what an independent one does."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

from nlp.cache import HeavyHitters, RandomTokens, Recent, SnapKV
from tests.nlp import tiny_causal
from tests.nlp.tiny_causal import FAMILIES, LENGTHS, generate, prompts

transformers = pytest.importorskip("transformers")
from nlp.cache import PrunedCache  # noqa: E402

POLICIES = [
    pytest.param(SnapKV(window=3), False, id="snapkv"),
    pytest.param(HeavyHitters(), False, id="heavy"),
    pytest.param(HeavyHitters(), True, id="heavy-decoding"),
    pytest.param(Recent(), True, id="recent-decoding"),
    pytest.param(RandomTokens(), False, id="random"),
]
HEADS = ["own", "pooled", "shared"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_causal.build(request.param)


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_causal.build("llama")


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("policy", [SnapKV(window=3), HeavyHitters(), Recent()], ids=lambda p: type(p).__name__)
def test_a_budget_that_nothing_exceeds_changes_nothing(model: Any, policy: Any, heads: str) -> None:
    ids, mask = prompts()
    want = generate(model, ids, mask)
    decoding = not isinstance(policy, SnapKV)
    cache = PrunedCache(model, policy, tokens=80, heads=heads, while_decoding=decoding)
    got = generate(model, ids, mask, past_key_values=cache)
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert cache.seen == [n + 7 for n in LENGTHS]  # the last token is never fed
    if getattr(model.config, "sliding_window", None) is None:
        assert all(n == 0 for layer in cache.evicted for row in layer for n in row)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("policy", "decoding"), POLICIES)
def test_each_row_of_a_batch_is_the_row_alone(model: Any, policy: Any, decoding: bool, heads: str) -> None:
    settings: dict[str, Any] = dict(keep=0.4, sinks=2, recent=3, heads=heads, while_decoding=decoding)
    ids, mask = prompts()
    cache = PrunedCache(model, policy, **settings)
    together = generate(model, ids, mask, past_key_values=cache)
    for row, n in enumerate(LENGTHS):
        single = PrunedCache(model, policy, **settings)
        alone = generate(model, ids[row : row + 1, -n:], past_key_values=single)
        assert torch.equal(together.sequences[row, ids.shape[1] :], alone.sequences[0, n:])
        for a, b in zip(together.logits, alone.logits):
            torch.testing.assert_close(a[row], b[0], atol=1e-4, rtol=1e-4)
        for layer in range(len(cache.layers)):
            for head in range(len(cache.kept[layer][row])):
                assert torch.equal(cache.kept_positions(layer, row, head), single.kept_positions(layer, 0, head))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("policy", [SnapKV(window=4, kernel=3), HeavyHitters()], ids=lambda p: type(p).__name__)
def test_scores_are_those_of_eager_attention_and_decoding_goes_on_over_the_kept_keys(family: str, policy: Any) -> None:
    """Oracle: eager probabilities, a ranking in plain Python, and DynamicCache with the rest cut out by hand."""
    model = tiny_causal.build(family)
    ids = prompts()[0][2:3]  # no padding
    n, kept, sinks, recent = ids.shape[1], 14, 2, 4
    model.set_attn_implementation("eager")
    with torch.no_grad():
        dense = transformers.DynamicCache(config=model.config)
        attentions = model(input_ids=ids, past_key_values=dense, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    cache = PrunedCache(model, policy, tokens=kept, sinks=sinks, recent=recent)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
    for index, probabilities in enumerate(attentions):
        layer = dense.layers[index]
        heads = layer.keys.shape[1]
        grouped = probabilities[0].view(heads, -1, n, n)
        rows = []
        for head in range(heads):
            if isinstance(policy, SnapKV):
                votes = grouped[head, :, -policy.window :, : n - policy.window].sum((0, 1)).tolist()
                around = [votes[max(j - 1, 0) : j + 2] for j in range(len(votes))]
                scores = [sum(near) for near in around]
            else:
                scores = grouped[head].sum((0, 1)).tolist()
            free = sorted(range(sinks, n - recent), key=lambda j: -scores[j])[: kept - sinks - recent]
            want = [*range(sinks), *sorted(free), *range(n - recent, n)]
            assert cache.kept_positions(index, 0, head).tolist() == want
            rows.append(want)
        at = torch.tensor(rows)[None, :, :, None].expand(-1, -1, -1, layer.keys.shape[-1])
        layer.keys, layer.values = layer.keys.gather(2, at), layer.values.gather(2, at)
    position = torch.tensor([[n]])
    following = torch.tensor([[11]])
    with torch.no_grad():
        want_logits = model(input_ids=following, past_key_values=dense, position_ids=position).logits
        got_logits = model(input_ids=following, past_key_values=cache).logits  # finds its position itself
    torch.testing.assert_close(got_logits, want_logits, atol=1e-5, rtol=1e-5)


def test_heavy_hitters_add_what_later_tokens_give(llama: Any) -> None:
    ids = prompts()[0][2:3]
    cache = PrunedCache(llama, HeavyHitters(), tokens=100)
    with torch.no_grad():
        llama(input_ids=ids[:, :9], past_key_values=cache)
        llama(input_ids=ids[:, 9:20], past_key_values=cache)
        for i in range(20, 24):
            llama(input_ids=ids[:, i : i + 1], past_key_values=cache)
        llama.set_attn_implementation("eager")
        attentions = llama(input_ids=ids[:, :24], output_attentions=True).attentions
    llama.set_attn_implementation("sdpa")
    for layer, probabilities in zip(cache.layers, attentions):
        want = probabilities[0].view(2, -1, 24, 24).sum((1, 2)).flatten()
        torch.testing.assert_close(layer.segments.scores, want, atol=1e-5, rtol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("heads", HEADS)
def test_a_second_turn_sees_what_is_kept_and_all_that_is_new(llama: Any, heads: str) -> None:
    """Several tokens after an eviction, rows of unequal lengths: as one by one, where only the first call evicts."""
    ids, mask = prompts()
    turn, turn_mask = prompts(seed=5, lengths=(4, 6, 1, 3))
    full_mask = torch.cat([mask, turn_mask], 1)
    caches = [PrunedCache(llama, SnapKV(window=3), keep=0.5, sinks=2, heads=heads) for _ in range(2)]
    with torch.no_grad():
        for cache in caches:
            llama(input_ids=ids, attention_mask=mask, past_key_values=cache)
        positions = (full_mask.cumsum(1) - 1).clamp(min=0)[:, ids.shape[1] :]
        whole = llama(
            input_ids=turn, attention_mask=full_mask, position_ids=positions, past_key_values=caches[0]
        ).logits
        for i in range(turn.shape[1]):
            one = llama(
                input_ids=turn[:, i : i + 1],
                attention_mask=full_mask[:, : ids.shape[1] + i + 1],
                position_ids=positions[:, i : i + 1],
                past_key_values=caches[1],
            ).logits[:, 0]
            real = turn_mask[:, i].bool()
            torch.testing.assert_close(whole[real, i], one[real], atol=1e-5, rtol=1e-5)
    assert caches[0].seen == caches[1].seen == [a + b for a, b in zip(LENGTHS, (4, 6, 1, 3))]


def test_memory_really_shrinks(llama: Any) -> None:
    ids, mask = prompts()
    full, quarter = (PrunedCache(llama, HeavyHitters(), keep=keep, sinks=1, recent=1) for keep in (1.0, 0.25))
    for cache in (full, quarter):
        with torch.no_grad():
            llama(input_ids=ids, attention_mask=mask, past_key_values=cache)
    assert full.bytes == sum(LENGTHS) * 3 * 2 * (2 * 8 * 4 + 8 + 4)  # tokens, layers, heads, two vectors and a note
    assert quarter.bytes <= 0.32 * full.bytes
    held = sum(x.untyped_storage().nbytes() for layer in quarter.layers for x in (layer.keys, layer.values))
    assert held == sum(x.numel() * 4 for layer in quarter.layers for x in (layer.keys, layer.values))
    assert quarter.kept[0] == [[-(-n // 4)] * 2 if n > 7 else [max(-(-n // 4), min(n, 2))] * 2 for n in LENGTHS]
    kept = torch.tensor(quarter.kept)
    assert torch.equal(torch.tensor(quarter.evicted) + kept, torch.tensor(quarter.seen)[None, :, None].expand_as(kept))


def test_values_do_not_hold_on_to_the_projection_they_are_part_of() -> None:
    model = tiny_causal.build("gpt2")  # one product for queries, keys and values
    cache = PrunedCache(model, Recent(), keep=1.0, heads="shared")
    with torch.no_grad():
        model(input_ids=prompts()[0], past_key_values=cache)
    for layer in cache.layers:
        assert layer.values.untyped_storage().nbytes() == layer.values.numel() * 4


def test_pooled_heads_share_a_budget_unevenly(llama: Any) -> None:
    ids = prompts()[0][2:3]
    cache = PrunedCache(llama, HeavyHitters(), tokens=12, sinks=1, recent=2, heads="pooled")
    with torch.no_grad():
        llama(input_ids=ids, past_key_values=cache)
    rows = [layer[0] for layer in cache.kept]
    assert all(sum(row) == 24 for row in rows) and any(row[0] != row[1] for row in rows)


def test_sinks_and_recent_tokens_stay(llama: Any) -> None:
    ids, mask = prompts()
    cache = PrunedCache(llama, RandomTokens(seed=3), tokens=9, sinks=3, recent=4, while_decoding=True)
    generate(llama, ids, mask, past_key_values=cache)
    for row, seen in enumerate(cache.seen):
        for head in range(2):
            positions = cache.kept_positions(1, row, head).tolist()
            assert len(positions) == min(9, seen)
            assert {*range(min(3, seen)), *range(max(0, seen - 4), seen)} <= set(positions)


def test_tokens_held_while_decoding_or_growing(llama: Any) -> None:
    ids, mask = prompts()
    for decoding, want in ((True, 12), (False, 12 + 7)):
        cache = PrunedCache(llama, Recent(), tokens=12, while_decoding=decoding)
        generate(llama, ids, mask, past_key_values=cache)
        assert cache.kept[2][2] == [want, want]


@pytest.mark.parametrize("decoding", [False, True])
def test_beam_search(llama: Any, decoding: bool) -> None:
    ids, mask = prompts()
    want = llama.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=6, do_sample=False)
    cache = PrunedCache(llama, HeavyHitters(), tokens=90, while_decoding=decoding)
    got = llama.generate(
        ids, attention_mask=mask, num_beams=3, max_new_tokens=6, do_sample=False, past_key_values=cache
    )
    assert torch.equal(got, want)


def test_rows_are_chosen_and_repeated(llama: Any) -> None:
    ids, mask = prompts()
    cache = PrunedCache(llama, HeavyHitters(), keep=0.5, sinks=1, recent=2)
    with torch.no_grad():
        llama(input_ids=ids, attention_mask=mask, past_key_values=cache)
    before, kept = cache.seen, [cache.kept_positions(1, row, 1) for row in range(4)]
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    assert cache.seen == [before[2]] * 2 + [before[0]] * 2
    for row, source in enumerate((2, 2, 0, 0)):
        assert torch.equal(cache.kept_positions(1, row, 1), kept[source])


def test_a_cache_goes_on_in_a_second_call_and_starts_anew_after_reset(llama: Any) -> None:
    ids = prompts()[0][2:3]
    cache = PrunedCache(llama, Recent(), tokens=100)
    first = generate(llama, ids, past_key_values=cache).sequences
    again = torch.cat([first, ids[:, :5]], 1)
    assert torch.equal(generate(llama, again, past_key_values=cache).sequences, generate(llama, again).sequences)
    cache.reset()
    assert cache.bytes == 0 and cache.get_seq_length() == 0
    assert torch.equal(generate(llama, ids, past_key_values=cache).sequences, first)


def test_other_caches_and_threads_are_not_touched(llama: Any) -> None:
    ids, mask = prompts()
    settings: dict[str, Any] = dict(keep=0.4, sinks=1, recent=2, while_decoding=True)

    def pruned() -> Any:
        return generate(llama, ids, mask, past_key_values=PrunedCache(llama, HeavyHitters(), **settings)).sequences

    jobs = [pruned, lambda: generate(llama, ids, mask).sequences]
    want = [job() for job in jobs]
    assert not torch.equal(*want)
    got: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: jobs[i % 2]()})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], want[i % 2]) for i in range(4))


def test_importing_nlp_cache_does_not_load_transformers() -> None:
    code = "import sys, nlp.cache; assert 'transformers' not in sys.modules; nlp.cache.SnapKV()"
    subprocess.run([sys.executable, "-c", code], check=True)
