"""Prompts that begin alike, as those of one character do: what they share is read once (prefix caching)."""

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

# Keys and values are copied to each row and attended to with gaps of padding: little saved is nothing gained.
_WORTH = 0.1


@dataclass(frozen=True)
class Portion:
    """Prompts that are sampled one after the other.

    Attributes:
        positions: of the prompts, in the caller's order.
        beginnings: token ids that are read first; none: every prompt is read whole.
        whose: of each prompt, the place of its beginning.
    """

    positions: tuple[int, ...]
    beginnings: tuple[tuple[int, ...], ...] = ()
    whose: tuple[int, ...] = ()

    def rests(self, prompts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """What follows the beginning in each of these prompts; at least one token."""
        if not self.beginnings:
            return [prompts[position] for position in self.positions]
        return [
            prompts[position][len(self.beginnings[place]) :]
            for position, place in zip(self.positions, self.whose, strict=True)
        ]


@dataclass(frozen=True)
class Begun:
    """Beginnings that were read.

    Attributes:
        cache: their keys and values, one row each.
        mask: 0 for padding, (rows, width).
    """

    cache: Cache
    mask: torch.Tensor

    def of(self, rows: Sequence[int]) -> "Begun":
        """The beginnings of these rows, each as often as it is named; the original stays as it is."""
        index = torch.tensor(list(rows), device=self.mask.device)
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(index)
        return Begun(cache, self.mask[index])


def can_share(config: PretrainedConfig) -> bool:
    """Is such a model indifferent to padding between a beginning and what follows it?

    Its layers must be plain attention, without a state or a window, and its positions rotary: those come with the
    tokens, while ALiBi and windows count the places of the cache.
    """
    rotary = getattr(config.get_text_config(decoder=True), "rope_parameters", None) is not None
    return rotary and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def portions(prompts: Sequence[Sequence[int]], alike: Sequence[Hashable], most: int) -> list[Portion]:
    """Divide prompts into portions whose beginnings are worth reading apart, and the rest.

    Args:
        prompts: token ids.
        alike: of each prompt, what tells which others begin as it does; that they do is seen, not believed.
        most: beginnings of one portion: they are read as one batch, and their keys and values are kept beside those of
            the batch that is drawn.
    """
    families: dict[Hashable, list[int]] = {}
    for position, kind in enumerate(alike):
        families.setdefault(kind, []).append(position)
    common = {
        tuple(family): _common([prompts[position] for position in family])
        for family in families.values()
        if len(family) > 1
    }
    large = [family for family, length in common.items() if length > 0]
    found = [
        portion
        for start in range(0, len(large), most)
        if (portion := _portion(prompts, {family: common[family] for family in large[start : start + most]}))
    ]
    shared = {position for portion in found for position in portion.positions}
    rest = tuple(position for position in range(len(prompts)) if position not in shared)
    return [*found, Portion(rest)] if rest else found


def _portion(prompts: Sequence[Sequence[int]], families: Mapping[tuple[int, ...], int]) -> Portion | None:
    """The families with the beginnings that leave least to read, or None where that is hardly less than all.

    Args:
        prompts: token ids.
        families: how many tokens the prompts at these positions have in common, at least one.
    """
    whole = sum(len(prompts[position]) for family in families for position in family)

    def to_read(cut: int) -> int:
        # Beginnings are padded to the longest: two equal prompts must not make those of all others long.
        saved = sum(len(family) * min(cut, length) for family, length in families.items())
        return len(families) * cut + whole - saved

    cut = min(sorted(set(families.values())), key=to_read)
    if to_read(cut) > (1 - _WORTH) * whole:
        return None
    beginnings = tuple(tuple(prompts[family[0]][: min(cut, length)]) for family, length in families.items())
    places = [(position, place) for place, family in enumerate(families) for position in family]
    places.sort()  # in the caller's order, whatever the families
    return Portion(tuple(position for position, _ in places), beginnings, tuple(place for _, place in places))


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; at least one of each is left over."""
    first, last = min(rows, key=list), max(rows, key=list)  # what these two have in common, all have
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return min(shared, min(map(len, rows)) - 1)


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places of at most ``size`` rows each, of similar length, to save padding; ties keep their order."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for start in range(0, len(order), size):
        yield order[start : start + size]
