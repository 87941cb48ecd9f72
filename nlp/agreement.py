"""How far an accelerated network agrees with its original."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from common_models import agreement
from common_models.modes import evaluating
from nlp.packing.architectures import parts_of
from nlp.tuning.sample import read

_MAX_TOKENS = 8192  # of a batch of texts, padding included


@dataclass(frozen=True, kw_only=True)
class Agreement(agreement.Agreement):
    """How near an accelerated network's last hidden states are to the original's; rows are tokens that both have.

    Attributes:
        cosine: of the mean states of each sequence over its live tokens, [N]; sequences without tokens are left out.
        kept: share of tokens alive at the end.
    """

    cosine: Tensor = field(compare=False)
    kept: float

    @property
    def largest(self) -> float:
        """`max_difference` by its former name."""
        return self.max_difference

    def __str__(self) -> str:
        if not len(self.cosine):
            return "nothing compared"
        return (
            f"cosine {self.cosine.mean():.6f} (lowest {self.cosine.min():.6f}), largest difference "
            f"{self.max_difference:.2g}, {self.kept:.0%} of tokens kept"
        )


def compare(
    model: nn.Module,
    faster: nn.Module,
    data: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]] | Iterable[str],
    *,
    tokenizer: Any = None,
) -> Agreement:
    """Run both networks on the same data, in evaluation mode, and say how far their last hidden states agree.

    Args:
        model: the original.
        faster: made from it.
        data: a tokenised batch, or several: input_ids [B, S], attention_mask [B, S] (all ones by default), whatever
            else the base model takes; labels and the like are not used. Or texts.
        tokenizer: of texts; by default the one that came with a network of `nlp.load_pretrained`.

    Raises:
        TypeError: data of another type; a network that is not of Hugging Face.
        ValueError: a batch without ids, a mask of another shape, texts without a known tokenizer, an architecture
            that is not known.

    Example:
        >>> import nlp
        >>> model = nlp.load_pretrained("all-minilm-l6-v2")
        >>> agreement = nlp.compare(model, nlp.accelerate(model), ["one text", "and a longer text"])
        >>> agreement.kept, bool(agreement.cosine.min() > 0.9999)
        (1.0, True)
    """
    networks = [parts_of(one).base for one in (model, faster)]
    cosines: list[Tensor] = []
    comparison, n_kept, n_tokens = agreement.Comparison(), 0, 0
    with torch.inference_mode(), evaluating(*networks):
        for batch in _batches(model, data, tokenizer):
            mask = _mask(batch)
            if not bool(mask.any()):
                continue
            want, got = (one(**_taken(one, batch)) for one in networks)
            token_index = getattr(got, "token_index", None)
            n_kept += int(mask.sum() if token_index is None else (token_index >= 0).sum())
            n_tokens += int(mask.sum())
            a, b = want.last_hidden_state.float(), got.last_hidden_state.float()
            has = (b != 0).any(-1) & mask
            cosines.append(torch.cosine_similarity(_mean(a, mask), _mean(b, has))[mask.any(1)].cpu())
            comparison.add(a[has], b[has])
    cosine = torch.cat(cosines) if cosines else torch.empty(0)
    return Agreement(**comparison.fields(), cosine=cosine, kept=n_kept / max(n_tokens, 1))


def _batches(model: nn.Module, data: Any, tokenizer: Any) -> Iterator[Mapping[str, Tensor]]:
    if isinstance(data, Mapping):
        yield data
        return
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise TypeError(f"data must be a tokenised batch, several of them, or texts, got {type(data).__name__}")
    texts: list[str] = []
    kind: type = object
    for one in data:
        if not isinstance(one, (Mapping, str)) or not isinstance(one, kind):
            raise TypeError(f"data must hold tokenised batches or texts, all of one kind, got {type(one).__name__}")
        kind = str if isinstance(one, str) else Mapping
        if isinstance(one, str):
            texts.append(one)
        else:
            yield one
    if texts:
        sample = read(model, texts, tokenizer, None)
        device = next(model.parameters()).device
        for positions in sample.batches(range(len(sample)), _MAX_TOKENS):
            ids, mask = sample.padded(positions, device)
            yield {"input_ids": ids, "attention_mask": mask}


def _mean(states: Tensor, of: Tensor) -> Tensor:
    """[B, C]: the mean of some of the states [B, S, C]."""
    return torch.where(of[..., None], states, 0).sum(1) / of.sum(1, keepdim=True).clamp(min=1)


def _mask(batch: Mapping[str, Tensor]) -> Tensor:
    """[B, S] bool: the tokens of a batch."""
    if "input_ids" not in batch:
        raise ValueError(f"data must hold input_ids, got {', '.join(map(str, batch)) or 'nothing'}")
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask must be {list(ids.shape)} [B, S], got {list(mask.shape)}")
    return mask.bool()


def _taken(network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a base model takes of a batch, and not what is for heads or decoders."""
    names = inspect.signature(network.forward).parameters
    return {name: value for name, value in batch.items() if name in names}
