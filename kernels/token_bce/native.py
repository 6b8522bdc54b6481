"""The registered ops misplace::token_bce*; importing misplace.kernels._C adds their kernels (csrc/)."""

import torch
from torch import Tensor

from .autograd import differentiable, empty_results

_library = torch.library.Library("misplace", "FRAGMENT")
_library.define(
    "token_bce(Tensor tokens, Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor bias, Tensor target, "
    "Tensor? token_weight, SymInt offset, float eps, bool gradients) "
    "-> (Tensor loss, Tensor logits, Tensor d_tokens, Tensor d_parameters)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define("token_bce_rescale_(Tensor(a!) d_tokens, Tensor(b!) d_parameters, Tensor scale) -> ()")
_library.define("token_bce_path() -> str")


@torch.library.register_fake("misplace::token_bce", lib=_library)
def _fake(tokens, norm_weight, norm_bias, weight, bias, target, token_weight, offset, eps, gradients):
    return tuple(empty_results(tokens, offset, gradients))


def cpu_path() -> str:
    """The instruction set that the CPU kernel takes here: avx512_bf16, avx2 or plain."""
    return torch.ops.misplace.token_bce_path()


def token_bce(
    tokens: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    offset: int,
    eps: float,
    token_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """loss and logits. TypeError for tokens in fp16 on the CPU, in fp64 on a GPU."""
    return differentiable(
        torch.ops.misplace.token_bce,
        torch.ops.misplace.token_bce_rescale_,
        tokens,
        norm_weight,
        norm_bias,
        weight,
        bias,
        target,
        token_weight,
        offset,
        eps,
    )
