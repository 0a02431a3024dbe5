"""A BERT encoder over texts laid end to end: no padding is computed.

Most sentence embedders are BERTs with mean pooling, and chat turns are short and of all lengths, so a padded batch
spends much of its time on nothing. Here the linear layers see one row a token, and attention runs over each
stretch of texts of the same length, without a mask.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _normed(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def fits(model: Any) -> bool:
    """Whether a sentence-transformers model is one this module computes: a plain BERT, the mean of its tokens.

    Args:
        model: a SentenceTransformer.
    """
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertModel

    modules = list(model)
    names = [type(module).__name__ for module in modules]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return False
    bert, pooling = modules[0].auto_model, modules[1]
    return (
        type(bert) is BertModel
        and bert.config.hidden_act == "gelu"
        and not bert.config.is_decoder
        and isinstance(pooling, Pooling)
        and pooling.pooling_mode == "mean"
    )


class PackedBert:
    """Mean-pooled unit vectors of token rows.

    Args:
        bert: a BertModel in evaluation mode; its weights are shared, queries, keys and values are stacked once.
    """

    def __init__(self, bert: Any) -> None:
        embeddings = bert.embeddings
        self._words: Tensor = embeddings.word_embeddings.weight.detach()
        self._places: Tensor = (
            embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        ).detach()
        self._norm: nn.LayerNorm = embeddings.LayerNorm
        self._heads: int = bert.config.num_attention_heads
        self._layers: list[tuple[Tensor, Tensor, Any]] = []
        for layer in bert.encoder.layer:
            parts = (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value)
            weight = torch.cat([part.weight for part in parts]).detach()
            self._layers.append((weight, torch.cat([part.bias for part in parts]).detach(), layer))

    def _attend(self, qkv: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
        """Attention within each text. ``qkv``: [tokens, 3 D]; ``runs``: (texts, tokens of each), in order."""
        width = qkv.shape[1] // 3
        out, begin = qkv.new_empty(qkv.shape[0], width), 0
        for texts, length in runs:
            end = begin + texts * length
            shaped = qkv[begin:end].view(texts, length, 3, self._heads, width // self._heads)
            q, k, v = shaped.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v)
            out[begin:end] = mixed.transpose(1, 2).reshape(end - begin, width)
            begin = end
        return out

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Unit vectors [texts, D], float32.

        Args:
            rows: token ids of each text, shortest first or longest first, so that equal lengths stand together.
        """
        lengths = torch.tensor([len(row) for row in rows])
        runs = [(len(list(same)), length) for length, same in groupby(lengths.tolist())]
        ids = torch.tensor([token for row in rows for token in row])
        places = torch.cat([torch.arange(length).repeat(texts) for texts, length in runs])
        x = _normed(self._norm, self._words[ids] + self._places[places])
        for weight, bias, layer in self._layers:
            mixed = self._attend(F.linear(x, weight, bias), runs)
            output = layer.attention.output
            x = _normed(output.LayerNorm, F.linear(mixed, output.dense.weight, output.dense.bias).add_(x))
            inner = F.gelu(F.linear(x, layer.intermediate.dense.weight, layer.intermediate.dense.bias))
            output = layer.output
            x = _normed(output.LayerNorm, F.linear(inner, output.dense.weight, output.dense.bias).add_(x))
        return F.normalize(torch.segment_reduce(x, "mean", lengths=lengths), dim=1)


def packs(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Texts in packs of about ``tokens`` tokens, sorted by length (longest first, then by place).

    Args:
        lengths: tokens of each text.
        tokens: a pack is closed when the next text would pass this; a longer text is a pack of its own.
    """
    pack: list[int] = []
    filled = 0
    for text in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        if pack and filled + lengths[text] > tokens:
            yield pack
            pack, filled = [], 0
        pack.append(text)
        filled += lengths[text]
    if pack:
        yield pack
