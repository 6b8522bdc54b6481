"""Tensors that the backward makes again instead of keeping."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def made_again(tensor: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Inside: whoever saves `tensor` for the backward saves `make` instead, which must give the same bits.

    `make` runs without gradients, once for each that saved it, and keeps what it needs alive.
    """
    pointer, shape = tensor.data_ptr(), tensor.shape  # the hooks live on with the graph and must not hold `tensor`

    def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
        return make if saved.data_ptr() == pointer and saved.shape == shape else saved

    def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return packed()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
