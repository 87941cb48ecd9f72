"""Small random networks with a real tokenizer, in memory and as folders, for tests that need no trained ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = (
    "the a film was is not very good bad great awful funny dull this that it i we loved hated plot actor scene".split()
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tokenizer(model_max_length: int = 64) -> Any:
    """A WordPiece tokenizer of some words and all lower-case letters, as BERT's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1) if chr(c) not in WORDS]
    tokens = [*SPECIAL, *WORDS, *letters, *(f"##{chr(c)}" for c in range(ord("a"), ord("z") + 1))]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=model_max_length,
    )


def bert(head: str = "BertModel", **changes: Any) -> Any:
    """A BERT of two layers and 32 channels with random weights, large enough to tell texts apart."""
    import transformers

    settings = dict(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(7)
    return getattr(transformers, head)(transformers.BertConfig(**{**settings, **changes})).eval()


def save(model: Any, folder: Path, with_tokenizer: bool = True) -> Path:
    """The model as a Hugging Face folder."""
    model.save_pretrained(folder)
    if with_tokenizer:
        tokenizer().save_pretrained(folder)
    return folder


def sentence_folder(
    folder: Path, pooling: dict[str, Any] | None = None, normalize: bool = True, **settings: Any
) -> Path:
    """A sentence-transformers folder around a random BERT; settings go into sentence_bert_config.json."""
    save(bert(), folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = pooling or {"pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    if normalize:
        (folder / "2_Normalize").mkdir()
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48, **settings}))
    return folder


def sentences(n: int, longest: int = 30) -> list[str]:
    """Sentences of 0 to `longest` words, always the same."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, longest + 1, (n,), generator=generator).tolist()
    return [
        " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (length,), generator=generator).tolist())
        for length in lengths
    ]
