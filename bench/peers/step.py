"""A training step of MoCo v3 + DILEMMA as people write it, on timm's trunk."""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from misplace.engine.config import Config
from misplace.kernels import OPS, Impl, ImplUnavailableError, resolve_impl

from .adamw_ema import eager_step
from .timm_trunk import FORMS, TimmTrunk, with_form
from .token_plan import eager_plan


def torch_operators(device: torch.device) -> str:
    """Our own engine on PyTorch's operators, as --run.impl takes it; plain PyTorch where an op has no such form."""

    def form(op: str) -> str:
        try:
            return resolve_impl(op, Impl.TORCH, device)
        except ImplUnavailableError:
            return Impl.REFERENCE

    return ",".join(f"{op}={form(op)}" for op in OPS)


def _head(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear without bias, BatchNorm, ReLU, ...; the last BatchNorm is not affine."""
    layers: list[nn.Module] = []
    for i, (inside, outside) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        layers += [nn.Linear(inside, outside, bias=False), nn.BatchNorm1d(outside, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _contrast(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    logits = F.normalize(query.float(), dim=1) @ F.normalize(key.float(), dim=1).T / temperature
    return 2 * temperature * F.cross_entropy(logits, torch.arange(len(query), device=query.device))


class TimmStep(nn.Module):
    """Embed all then gather, an LayerNorm + Linear + BCE head, a dense teacher; fused AdamW, then a foreach EMA."""

    def __init__(self, config: Config, attention: str):
        super().__init__()
        self.config, model, framework = config, config.model, config.framework
        trunk = TimmTrunk(
            model.name,
            image_size=model.image_size,
            patch_size=model.patch_size,
            num_heads=model.num_heads,
            attention=attention,
        )
        hidden, out, width = framework.hidden_width, framework.output_width, trunk.vit.embed_dim
        self.student = nn.ModuleDict({"trunk": trunk, "projector": _head((width, hidden, hidden, out))})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor, self.head = _head((out, hidden, out)), nn.Linear(width, 1)
        self.patches = trunk.vit.patch_embed.num_patches

    def forward(
        self,
        pixels: Tensor,  # fp32 [2 B, 3, H, W]: one view of every image, then the other
        src: Tensor,  # int64 [2 B, K], as pos
        pos: Tensor,
        wrong: Tensor,  # bool [2 B, K]
    ) -> Tensor:  # scalar
        tokens = self.student["trunk"](pixels, src, pos)
        bce = F.binary_cross_entropy_with_logits(self.head(tokens[:, 1:]).squeeze(-1).float(), wrong.float())
        queries = [self.predictor(self.student["projector"](each)) for each in tokens[:, 0].chunk(2)]
        with torch.no_grad():
            whole = torch.arange(self.patches, device=pixels.device).expand(len(pixels), -1)
            keys = self.teacher["trunk"](pixels, whole, whole)[:, 0].chunk(2)
            keys = [self.teacher["projector"](each) for each in keys]
        tau = self.config.framework.temperature
        return bce + _contrast(queries[0], keys[1], tau) + _contrast(queries[1], keys[0], tau)


def timm_step(config: Config, form: str, batches: list[Tensor], lr: float, device: torch.device):
    """A function that makes one update; form: one of FORMS. batches: pixels as TimmStep takes them."""
    method = TimmStep(config, FORMS[form][0]).to(device)
    losses, turns, settings = with_form(method, form, device), itertools.cycle(batches), config.optim
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )
    pairs = zip(method.student.parameters(), method.teacher.parameters(), strict=True)
    students, teachers = zip(*[(s, t) for s, t in pairs if s.requires_grad], strict=True)
    kept, theta = int(method.patches * (1 - config.pretext.drop_rate) + 1e-6), config.pretext.wrong_rate

    def step() -> list[Tensor]:
        pixels = next(turns)
        loss = losses(pixels, *eager_plan(len(pixels), method.patches, kept, theta, device))
        loss.backward()
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        with torch.no_grad():
            eager_step(optimizer, students, teachers, config.framework.momentum, (), ())
        optimizer.zero_grad()
        return [loss.detach()]

    return step
