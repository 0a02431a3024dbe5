"""A key-value cache with room for the tokens to come.

The library's dynamic layer copies the whole cache of a layer for every new token, which took a third of a
decoding step; this one writes the token in place.
"""

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, tokens, width), as views of larger buffers.

    Args:
        layer: a layer that was filled; its tensors are copied.
        room: how many more tokens will come at most.
    """

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        assert layer.keys is not None
        assert layer.values is not None
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._length = layer.keys.shape[-2]
        self._buffers = [
            torch.nn.functional.pad(part, (0, 0, 0, room)) for part in (layer.keys, layer.values)
        ]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens; keys and values of all so far. More tokens than there is room for are an error."""
        start, self._length = self._length, self._length + key_states.shape[-2]
        for buffer, part in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._length] = part
        self._show()
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows."""
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show()


def make_room(cache: Cache, room: int) -> None:
    """Give the plain dynamic layers of a filled cache room for more tokens; others stay as they are."""
    cache.layers = [
        RoomyLayer(layer, room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
