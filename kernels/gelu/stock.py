"""gelu by PyTorch's own operator: one pass, fp32 inside, whatever the dtype; one more for a bias, in dtype of x."""

import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    return F.gelu(x if bias is None else x + bias.to(x.dtype))
