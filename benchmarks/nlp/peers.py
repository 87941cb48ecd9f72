"""How others embed the same tokenised documents: padded batches in Hugging Face and the runtimes that serve it.

Each gives normalised means over the tokens, in the order of the documents, and works in batches of 32, or of 8 where it
sorts by length. Making the padded batch and pooling are part of what is timed; tokenising is not.
"""

from __future__ import annotations

import functools
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.data import Unavailable
from benchmarks.harness import DTYPES
from benchmarks.nlp import minilm
from benchmarks.nlp.minilm import Documents, need, padded, pooled

HF_ARRIVAL, HF_SORTED = "HF, arrival order", "HF, length-sorted"
SENTENCE_TRANSFORMERS = "sentence-transformers"
ORT_SORTED, CT2_SORTED = "ONNX Runtime, length-sorted", "CTranslate2, length-sorted"

Batches = list[list[int]]


class Result(NamedTuple):
    """Embeddings fp32 [N, H], and how many tokens were alive before each layer and at the end, where any were left out.

    kept: int64 [layers + 1], summed over the documents.
    """

    embeddings: Tensor
    kept: Tensor | None = None


@dataclass(frozen=True)
class Way:
    """One way to embed documents.

    Attributes:
        build: of documents, dtype, threads and device; returns the call that is timed.
        dtypes: those it has.
        batches: of the documents' lengths, which it pads to one width; None where it pads none or decides alone.
    """

    build: Callable[[Documents, str, int, str], Callable[[], Result]]
    dtypes: tuple[str, ...]
    batches: Callable[[Sequence[int]], Batches] | None = None


def in_order(parts: Iterable[Tensor], batches: Batches) -> Tensor:
    """Rows that were computed batch by batch, in the order of the documents."""
    rows = torch.cat(list(parts)) if batches else torch.zeros(0, 0)
    out = torch.empty_like(rows)
    out[torch.tensor([i for batch in batches for i in batch], dtype=torch.int64)] = rows
    return out


def alone(documents: Documents) -> Tensor:
    """What is right: each document by itself, without any padding, by the Hugging Face model in fp32."""
    model = minilm.model()
    with torch.inference_mode():
        parts = []
        for ids in documents.ids:
            rows, mask = padded([ids])
            parts.append(pooled(model(input_ids=rows, attention_mask=mask).last_hidden_state, mask))
    return in_order(parts, [[i] for i in range(len(documents.ids))])


def _hugging_face(
    order: Callable[[Sequence[int]], Batches], documents: Documents, dtype: str, threads: int, device: str
) -> Callable[[], Result]:
    model = minilm.model(DTYPES[dtype], device=device)
    batches = order(documents.lengths)

    @torch.inference_mode()
    def call() -> Result:
        parts = []
        for batch in batches:
            ids, mask = padded([documents.ids[i] for i in batch], device)
            parts.append(pooled(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask))
        return Result(in_order(parts, batches))

    return call


def _sentence_transformers(documents: Documents, dtype: str, threads: int, device: str) -> Callable[[], Result]:
    library = need("sentence_transformers")
    encoder = library.SentenceTransformer(
        str(minilm.folder()), device=device, local_files_only=True, model_kwargs={"dtype": DTYPES[dtype]}
    )
    # Its own batching and sorting, by the texts; the tokens are those that all are given.
    known = dict(zip(documents.texts, documents.ids, strict=True))

    def look_up(texts: Sequence[str], **_: object) -> dict[str, Tensor]:
        ids, mask = padded([known[text] for text in texts])
        return {"input_ids": ids, "attention_mask": mask}

    encoder.preprocess = look_up

    def call() -> Result:
        found = encoder.encode(list(documents.texts), batch_size=minilm.SORTED_BATCH, convert_to_tensor=True)
        return Result(found.float())

    return call


def _onnx_runtime(
    order: Callable[[Sequence[int]], Batches], documents: Documents, dtype: str, threads: int, device: str
) -> Callable[[], Result]:
    _on_a_cpu(device)
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads would spin on into the next competitor's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = _onnx_files()[dtype == "int8"]
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    batches = order(documents.lengths)

    def call() -> Result:
        parts = []
        for batch in batches:
            ids, mask = padded([documents.ids[i] for i in batch])
            (hidden,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
            parts.append(pooled(torch.from_numpy(hidden), mask))
        return Result(in_order(parts, batches))

    return call


def _ctranslate2(
    order: Callable[[Sequence[int]], Batches], documents: Documents, dtype: str, threads: int, device: str
) -> Callable[[], Result]:
    _on_a_cpu(device)
    library, numpy = need("ctranslate2"), need("numpy")
    encoder = library.Encoder(
        str(_ctranslate2_folder()),
        device="cpu",
        inter_threads=1,
        intra_threads=threads,
        compute_type={"fp32": "float32", "int8": "int8"}[dtype],
    )
    batches = order(documents.lengths)

    def call() -> Result:
        parts = []
        for batch in batches:
            ids = [documents.ids[i] for i in batch]
            hidden = torch.from_numpy(numpy.array(encoder.forward_batch(ids).last_hidden_state))
            lengths = torch.tensor([len(one) for one in ids])
            parts.append(pooled(hidden, torch.arange(hidden.shape[1]) < lengths[:, None]))
        return Result(in_order(parts, batches))

    return call


def _on_a_cpu(device: str) -> None:
    if device != "cpu":
        raise Unavailable("measured on a CPU only")


class _Hidden(nn.Module):
    """The model with tensors in and one tensor out, which is what an ONNX graph has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@functools.lru_cache(maxsize=1)
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for converted models; it goes with the process."""
    return tempfile.TemporaryDirectory(prefix="trisparse-bench-")


@functools.lru_cache(maxsize=1)
def _onnx_files() -> tuple[Path, Path]:
    """The model in fp32 as torch exports it, and its dynamic quantisation to int8 with a scale for each channel.

    Per channel costs the runtime no time here, and with one scale for a matrix the mean cosine drops to 0.95.
    """
    quantization = need("onnxruntime.quantization")
    whole, small = (Path(_scratch().name) / name for name in ("fp32.onnx", "int8.onnx"))
    ids, mask = padded([[1, 2, 3, 1], [2, 1]])  # any, to trace with
    axes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter that traces, which gives the graph that runs faster
        torch.onnx.export(
            _Hidden(minilm.model(attention="eager")), (ids, mask), str(whole), dynamo=False, opset_version=17,
            input_names=["input_ids", "attention_mask"], output_names=["hidden"],
            dynamic_axes=dict.fromkeys(("input_ids", "attention_mask", "hidden"), axes),
        )  # fmt: skip
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it recommends a preprocessing that changes nothing here
    try:
        quantization.quantize_dynamic(
            str(whole), str(small), weight_type=quantization.QuantType.QInt8, per_channel=True
        )
    finally:
        log.setLevel(level)
    return whole, small


@functools.lru_cache(maxsize=1)
def _ctranslate2_folder() -> Path:
    """The model as CTranslate2 keeps it, in fp32; the encoder quantises on loading."""
    converters = need("ctranslate2.converters")
    target = Path(_scratch().name) / "ctranslate2"
    converters.TransformersConverter(str(minilm.folder())).convert(str(target))
    return target


# The runtimes on their best footing: sorted, though documents do not arrive so.
PEERS: dict[str, Way] = {
    HF_ARRIVAL: Way(functools.partial(_hugging_face, minilm.arrival), ("fp32", "bf16"), minilm.arrival),
    HF_SORTED: Way(functools.partial(_hugging_face, minilm.by_length), ("fp32", "bf16"), minilm.by_length),
    SENTENCE_TRANSFORMERS: Way(_sentence_transformers, ("fp32",)),
    ORT_SORTED: Way(functools.partial(_onnx_runtime, minilm.by_length), ("fp32", "int8"), minilm.by_length),
    CT2_SORTED: Way(functools.partial(_ctranslate2, minilm.by_length), ("fp32", "int8"), minilm.by_length),
}
