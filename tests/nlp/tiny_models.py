"""Small random networks with a real tokenizer, in memory and as folders, for tests that need no trained ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


_BERT_LIKE = dict(
    vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=260, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
_ROBERTA_LIKE = dict(_BERT_LIKE, type_vocab_size=2, pad_token_id=1, bos_token_id=0, eos_token_id=2)
_LLAMA_LIKE = dict(
    vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, max_position_embeddings=260, pad_token_id=0, bos_token_id=2, eos_token_id=3,
)  # fmt: skip
# Configurations of every architecture, as small as their parts allow, without dropout.
CONFIGS: dict[str, dict[str, Any]] = {
    "albert": dict(
        _BERT_LIKE, embedding_size=16, num_hidden_groups=2, num_hidden_layers=4, inner_group_num=2,
        classifier_dropout_prob=0.0, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    ),
    "bert": _BERT_LIKE,
    "camembert": _ROBERTA_LIKE,
    "distilbert": dict(
        vocab_size=97, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=260, dropout=0.0,
        attention_dropout=0.0, qa_dropout=0.0, seq_classif_dropout=0.0,
    ),
    "electra": dict(_BERT_LIKE, embedding_size=16),
    "gpt2": dict(
        vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=260, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    ),
    "llama": _LLAMA_LIKE,
    "mistral": dict(_LLAMA_LIKE, sliding_window=16),
    "modernbert": dict(
        vocab_size=97, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=260, local_attention=16, global_attn_every_n_layers=3, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, cls_token_id=2, sep_token_id=3, attention_dropout=0.0, embedding_dropout=0.0, mlp_dropout=0.0,
    ),
    "mpnet": dict(_BERT_LIKE, pad_token_id=1, bos_token_id=0, eos_token_id=2),
    "qwen3": dict(_LLAMA_LIKE, use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "roberta": _ROBERTA_LIKE,
    "t5": dict(
        vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    ),
    "xlm-roberta": _ROBERTA_LIKE,
}  # fmt: skip
# Those of the architectures that differ from one of the above in names alone: rows of the table, tested more briefly.
_PLAIN_LLAMA = {key: value for key, value in _LLAMA_LIKE.items() if key != "head_dim"}
_MULTI_HEAD = {key: value for key, value in _PLAIN_LLAMA.items() if key != "num_key_value_heads"}
MORE_CONFIGS: dict[str, dict[str, Any]] = {
    "arcee": _LLAMA_LIKE,
    "bert-generation": {key: value for key, value in _BERT_LIKE.items() if key != "type_vocab_size"},
    "cohere": _PLAIN_LLAMA,
    "data2vec-text": _ROBERTA_LIKE,
    "ernie": _BERT_LIKE,
    "ernie4_5": _LLAMA_LIKE,
    "esm": dict(
        _ROBERTA_LIKE, position_embedding_type="rotary", emb_layer_norm_before=False, token_dropout=True,
        mask_token_id=3,
    ),
    "eurobert": _LLAMA_LIKE,
    "exaone4": _LLAMA_LIKE,
    "gemma": _LLAMA_LIKE,
    "gemma3_text": dict(_LLAMA_LIKE, sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2)
    | {"num_hidden_layers": 4},
    "glm": _LLAMA_LIKE,
    "glm4": _LLAMA_LIKE,
    "gpt_neox": _MULTI_HEAD,
    "granite": _PLAIN_LLAMA,
    "gte": _BERT_LIKE,
    "helium": _LLAMA_LIKE,
    "hunyuan_v1_dense": _LLAMA_LIKE,
    "jina_embeddings_v3": _ROBERTA_LIKE,
    "layoutlm": _BERT_LIKE,
    "ministral3": _LLAMA_LIKE,
    "mixtral": dict(_LLAMA_LIKE, num_local_experts=3),
    "modernbert-decoder": CONFIGS["modernbert"],
    "nomic_bert": _BERT_LIKE,
    "olmo2": _PLAIN_LLAMA,
    "olmo3": _LLAMA_LIKE,
    "phi": dict(_MULTI_HEAD, partial_rotary_factor=0.5),
    "phi3": _PLAIN_LLAMA,
    "qwen2": _LLAMA_LIKE,
    "qwen3_moe": dict(_LLAMA_LIKE, num_experts=9, moe_intermediate_size=16),
    "roberta-prelayernorm": _ROBERTA_LIKE,
    "smollm3": _LLAMA_LIKE,
    "stablelm": _PLAIN_LLAMA,
    "starcoder2": _PLAIN_LLAMA,
    "xlm-roberta-xl": _ROBERTA_LIKE,
}  # fmt: skip
_PREFIX = {
    "albert": "Albert", "bert": "Bert", "camembert": "Camembert", "distilbert": "DistilBert", "electra": "Electra",
    "gpt2": "GPT2", "llama": "Llama", "mistral": "Mistral", "modernbert": "ModernBert", "mpnet": "MPNet",
    "qwen3": "Qwen3", "roberta": "Roberta", "t5": "T5", "xlm-roberta": "XLMRoberta",
    "arcee": "Arcee", "bert-generation": "BertGeneration", "cohere": "Cohere", "data2vec-text": "Data2VecText",
    "ernie": "Ernie", "ernie4_5": "Ernie4_5", "esm": "Esm", "eurobert": "EuroBert", "exaone4": "Exaone4",
    "gemma": "Gemma", "gemma3_text": "Gemma3Text", "glm": "Glm", "glm4": "Glm4", "gpt_neox": "GPTNeoX",
    "granite": "Granite", "gte": "Gte", "helium": "Helium", "hunyuan_v1_dense": "HunYuanDenseV1",
    "jina_embeddings_v3": "JinaEmbeddingsV3", "layoutlm": "LayoutLM", "ministral3": "Ministral3",
    "mixtral": "Mixtral", "modernbert-decoder": "ModernBertDecoder", "nomic_bert": "NomicBert", "olmo2": "Olmo2",
    "olmo3": "Olmo3", "phi": "Phi", "phi3": "Phi3", "qwen2": "Qwen2", "qwen3_moe": "Qwen3Moe",
    "roberta-prelayernorm": "RobertaPreLayerNorm", "smollm3": "SmolLM3", "stablelm": "StableLm",
    "starcoder2": "Starcoder2", "xlm-roberta-xl": "XLMRobertaXL",
}  # fmt: skip


def network(model_type: str, head: str = "Model", attention: str = "sdpa", **changes: Any) -> Any:
    """A random network of one architecture, in eval mode, whose activations are of the order of 1 to 4.

    Every parameter is random, biases and norms too, so that none can be left out unnoticed.

    Args:
        head: the end of the class's name, such as "ForMaskedLM"; T5's plain model is its encoder.
        attention: transformers' name of the attention.
        changes: to the configuration.
    """
    import transformers

    prefix = _PREFIX[model_type]
    if head == "Model":
        head = {"t5": "EncoderModel", "bert-generation": "Encoder"}.get(model_type, head)
    settings = CONFIGS[model_type] if model_type in CONFIGS else MORE_CONFIGS[model_type]
    config = getattr(transformers, f"{prefix}Config")(**{**settings, **changes})
    config._attn_implementation = "eager" if model_type == "mpnet" else attention  # it has no other
    torch.manual_seed(7)
    model = getattr(transformers, f"{prefix}{head}")(config).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(noise * 0.2)
            else:
                parameter.copy_(noise * min(0.5, 1.2 * parameter.shape[-1] ** -0.5))
    return model


LENGTHS = (33, 1, 200, 2, 7, 3)


def padded(
    lengths: Sequence[int] = LENGTHS, side: str = "right", padding: int = 0, extra: int = 0, seed: int = 3
) -> dict[str, torch.Tensor]:
    """A padded batch of random ids: input_ids and attention_mask, int64 [B, max(lengths) + extra].

    A sequence's ids depend on its length and the seed alone.

    Args:
        padding: the id at padding, which no other token has.
    """
    width = max(lengths, default=0) + extra
    ids = torch.full((len(lengths), width), padding)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        place = slice(0, n) if side == "right" else slice(width - n, width)
        ids[row, place] = torch.randint(4, 97, (n,), generator=torch.Generator().manual_seed(1000 * seed + n))
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def padding_id(model: Any) -> int:
    """The id that a network's configuration gives to padding; 0 where it gives none."""
    return model.config.pad_token_id or 0
