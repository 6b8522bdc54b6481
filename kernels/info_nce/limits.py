"""What implementations of info_nce take, in one place: for the error of a named one and for "auto"."""

import torch

from ..impl import Impl

MAX_TRITON_WIDTH = 512
DTYPES = {
    Impl.NATIVE: (torch.float32, torch.bfloat16),
    Impl.TRITON: (torch.float32, torch.bfloat16, torch.float16),
}
