"""The attentive head of arXiv 2301.11915: one learned query looks at all tokens, and a linear layer classifies.

    y = W_out concat_h( softmax_l(q_h . (W_k x_l)_h / sqrt(d)) summed over (W_v x_l)_h ) + b
    logits = Linear(BatchNorm(y)),  BatchNorm without scale and shift, running statistics at test [S]

One query needs no key and no value of any token: q . (W_k x) = (W_k' q) . x, and the weighted sum is taken before W_v.
The same function at a thirtieth of the arithmetic. Key and value biases are left out: the first has no effect on a
softmax, the second none after the BatchNorm.
"""

import torch
from torch import Tensor, nn

from .fit import fit

NUM_HEADS = 12
STEPS, BATCH_SIZE, LR, WEIGHT_DECAY = 800, 128, 1e-3, 0.05
TOKENS_AT_ONCE = 2**24


class AttentiveHead(nn.Module):
    """tokens fp32 [B, L, D] -> logits [B, C]. [O] Each channel is first standardised as over the training tokens."""

    def __init__(self, width: int, num_classes: int, num_heads: int, generator: torch.Generator):
        super().__init__()
        self.num_heads = num_heads
        drawn = {"generator": generator}
        self.query = nn.Parameter(nn.init.normal_(torch.empty(num_heads, width // num_heads), **drawn))
        self.key, self.value, self.out = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width), **drawn)) for _ in range(3)
        )
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.weight = nn.Parameter(torch.zeros(num_classes, width))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        x = (tokens - self.mean) / self.deviation
        heads, channels = self.query.shape
        looked_for = torch.einsum("hc,hcd->hd", self.query, self.key.view(heads, channels, -1)) * channels**-0.5
        weights = torch.einsum("bld,hd->bhl", x, looked_for).softmax(-1)
        seen = torch.einsum("bhd,hcd->bhc", weights @ x, self.value.view(heads, channels, -1))
        return nn.functional.linear(self.norm(seen.flatten(1) @ self.out.T), self.weight, self.bias)


def heads_for(width: int) -> int:
    """12, or the largest number below it that divides the width [O]."""
    return next(heads for heads in range(min(NUM_HEADS, width), 0, -1) if width % heads == 0)


def fit_attentive(
    tokens: Tensor,  # [n, L, D], of any float dtype
    labels: Tensor,  # int64 [n], 0..C-1
    num_classes: int,
    *,
    steps: int = STEPS,
    lr: float = LR,
    seed: int = 0,
) -> AttentiveHead:
    """The head trained on frozen tokens with cross-entropy, in eval mode. [O] AdamW, lr 1e-3, decay .05."""
    generator = torch.Generator().manual_seed(seed)
    width = tokens.shape[2]
    head = AttentiveHead(width, num_classes, heads_for(width), generator).to(tokens.device)
    head.mean, head.deviation = channel_statistics(tokens)
    labels = labels.to(tokens.device)

    def loss_of(rows: Tensor) -> Tensor:
        rows = rows.to(tokens.device)
        return nn.functional.cross_entropy(head(tokens[rows].float()), labels[rows])

    options = {"steps": steps, "batch_size": BATCH_SIZE, "lr": lr, "weight_decay": WEIGHT_DECAY}
    fit(list(head.parameters()), loss_of, len(tokens), generator=generator, **options)
    return head.eval()


@torch.no_grad()
def attentive_predictions(head: AttentiveHead, tokens: Tensor) -> Tensor:
    """int64 [n], of tokens [n, L, D]."""
    at_once = max(1, TOKENS_AT_ONCE // tokens[0].numel())
    return torch.cat([head(part.float()).argmax(1) for part in tokens.split(at_once)])


def channel_statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation fp32 [D] of each channel over all tokens [n, L, D]; a constant one has 1."""
    total, squares = 0.0, 0.0
    for part in tokens.split(max(1, TOKENS_AT_ONCE // tokens[0].numel())):
        part = part.double().flatten(0, 1)
        total, squares = total + part.sum(0), squares + part.square().sum(0)
    count = tokens.shape[0] * tokens.shape[1]
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(deviation > 1e-6, deviation, 1.0).float()
