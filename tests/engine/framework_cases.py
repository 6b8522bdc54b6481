"""Small frameworks in fp64, their losses by the engine, and the same by the formulas of the papers.

`python framework_cases.py NAME RANK WORLD FOLDER` is one rank of several: it takes its share of the batch and writes
its loss and the gradients that all ranks agree on.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from misplace.engine.distributed import average_gradients
from misplace.engine.frameworks import (
    FRAMEWORKS,
    DinoConfig,
    MaeConfig,
    MocoV3Config,
    SimclrConfig,
)
from misplace.engine.implementations import use_implementations
from misplace.engine.models import VisionTransformer
from misplace.engine.step import see
from misplace.kernels import OPS, TokenPlan, token_plan

CONFIGS = {
    "moco_v3": MocoV3Config(hidden_width=24, output_width=12),
    "simclr": SimclrConfig(output_width=12),
    "dino": DinoConfig(num_prototypes=37, hidden_width=20, bottleneck_width=12),
    "dino_batch_norm": DinoConfig(num_prototypes=37, hidden_width=20, bottleneck_width=12, batch_norm=True),
    "mae": MaeConfig(decoder_width=16, decoder_depth=2, decoder_heads=2),
}
BATCH, SIDE, LOCAL_SIDE = 6, 12, 8
TEACHER_TEMPERATURE = 0.05


class Case:
    """One framework with random weights and a batch: fp64, ops by their references, teacher unlike the student."""

    def __init__(self, name: str):
        torch.manual_seed(0)
        is_dino = name.startswith("dino")
        self.name = name
        self.encoder = VisionTransformer(
            image_size=SIDE, patch_size=4, channels=3, width=16, depth=2, num_heads=2, mean=(0.5,) * 3, std=(0.25,) * 3,
            init="uniform_fan_in", learned_position=is_dino, freeze_patch_projection=name == "moco_v3",
        )  # fmt: skip
        self.framework = FRAMEWORKS[type(CONFIGS[name])](CONFIGS[name], self.encoder)
        for module in (self.encoder, self.framework):
            use_implementations(module.double(), dict.fromkeys(OPS, "reference"))
        for module in (*self.encoder.modules(), *self.framework.modules()):
            if isinstance(module, VisionTransformer):
                module.compute_dtype = torch.float64
        self._disturb()
        views = self.framework.num_views
        self.views = tuple(_pixels(SIDE) for _ in range(views))
        self.local = tuple(_pixels(LOCAL_SIDE) for _ in range(3)) if is_dino else ()
        rates = {"drop_rate": 0.5, "wrong_rate": 0.3}
        self.plans = [
            token_plan(torch.arange(BATCH), num_patches=9, **rates, seed=0, epoch=0, view=v) for v in range(views)
        ]

    def _disturb(self) -> None:
        """A teacher, a centre and an affine norm that are not those of the start."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, tensor in (*self.framework.named_parameters(), *self.framework.named_buffers()):
                if tensor.is_floating_point() and ("pos_embed" not in name or self.name.startswith("dino")):
                    tensor += 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    def loss(self, rows: slice = slice(None)) -> Tensor:
        """The framework's loss of some rows of the batch, as the step computes it."""
        views, local = (tuple(view[rows] for view in group) for group in (self.views, self.local))
        plan = TokenPlan(*(torch.cat([field[rows] for field in fields]) for fields in zip(*self.plans)))
        student = see(self.encoder, views, plan, local)
        schedule = dict.fromkeys(self.framework.schedule(0), TEACHER_TEMPERATURE)
        return sum(self.framework.losses(student, views, schedule).values())

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        named = [("encoder." + n, p) for n, p in self.encoder.named_parameters()]
        named += [("framework." + n, p) for n, p in self.framework.named_parameters()]
        return {name: p for name, p in named if p.requires_grad}


def _pixels(side: int) -> Tensor:
    return torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """logits [N, M], target int [N]."""
    return (logits.exp().sum(-1).log() - logits[torch.arange(len(logits)), target]).mean()


def batch_norm_head(x: Tensor, layers) -> Tensor:
    """Linear without bias, BatchNorm, ReLU, ..., by the textbook."""
    for layer in layers:
        if hasattr(layer, "weight_copy"):
            x = x @ layer.weight.T
        elif isinstance(layer, torch.nn.BatchNorm1d):
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + layer.eps).sqrt()
            x = x * layer.weight + layer.bias if layer.affine else x
        else:
            x = x.clamp(min=0)
    return x


def layer_norm(x: Tensor, norm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def block(x: Tensor, layer) -> Tensor:
    """A pre-norm transformer block by the textbook, head by head."""
    qkv = layer_norm(x, layer.norm1) @ layer.attn.qkv.weight.T + layer.attn.qkv.bias
    width, heads = x.shape[-1], layer.attn.num_heads
    size, mixed = width // heads, []
    for head in range(heads):
        q, k, v = (qkv[..., part * width + head * size :][..., :size] for part in range(3))
        mixed.append(torch.softmax(q @ k.transpose(-1, -2) / size**0.5, -1) @ v)
    x = x + torch.cat(mixed, -1) @ layer.attn.proj.weight.T + layer.attn.proj.bias
    hidden = gelu(layer_norm(x, layer.norm2) @ layer.mlp.fc1.weight.T + layer.mlp.fc1.bias)
    return x + hidden @ layer.mlp.fc2.weight.T + layer.mlp.fc2.bias


def student_tokens(case: Case, view: int) -> Tensor:
    """Normalised, [B, 1 + K, D]; the trunk itself is held against timm in test_vision_transformer.py."""
    return layer_norm(case.encoder(case.views[view], case.plans[view]), case.encoder.norm)


def moco_v3(case: Case) -> Tensor:
    framework, tau = case.framework, 0.2
    teacher = framework.teacher
    queries = [
        batch_norm_head(batch_norm_head(student_tokens(case, v)[:, 0], framework.projector), framework.predictor)
        for v in range(2)
    ]
    keys = [batch_norm_head(teacher["encoder"].embed(view)[0], teacher["projector"]).detach() for view in case.views]
    target = torch.arange(BATCH)
    return sum(2 * tau * cross_entropy(unit(queries[v]) @ unit(keys[1 - v]).T / tau, target) for v in range(2))


def simclr(case: Case) -> Tensor:
    tokens = torch.cat([student_tokens(case, v)[:, 0] for v in range(2)])
    z = unit(batch_norm_head(tokens, case.framework.projector))
    total = 0.0
    for i in range(2 * BATCH):
        others = [j for j in range(2 * BATCH) if j != i]
        similarities = torch.stack([z[i] @ z[j] / 0.1 for j in others])
        total = total + similarities.exp().sum().log() - similarities[others.index((i + BATCH) % (2 * BATCH))]
    return total / (2 * BATCH)


def dino(case: Case) -> Tensor:
    framework, teacher = case.framework, case.framework.teacher

    def logits(class_token: Tensor, head, prototypes) -> Tensor:
        x = class_token
        for depth, layer in enumerate(head.layers[:-1]):
            x = x @ layer.weight.T + layer.bias
            x = gelu(batch_norm_head(x, [head.norms[depth]]) if head.norms else x)
        x = x @ head.layers[-1].weight.T + head.layers[-1].bias
        return unit(x) @ unit(prototypes.weight).T

    class_tokens = [student_tokens(case, v)[:, 0] for v in range(2)]
    class_tokens += [local_class_token(case, crop) for crop in case.local]
    # statistics of BatchNorm are of all crops
    student = logits(torch.cat(class_tokens), framework.head, framework.prototypes).chunk(len(class_tokens))
    student = [s / 0.1 for s in student]
    seen = torch.cat([teacher["encoder"].embed(view)[0] for view in case.views])
    told = logits(seen, teacher["head"], teacher["prototypes"]).detach().chunk(len(case.views))
    terms = []
    for u, g in enumerate(told):
        q = torch.softmax((g - framework.centre) / TEACHER_TEMPERATURE, -1)
        for v, s in enumerate(student):
            if v != u:
                terms.append(-(q * torch.log_softmax(s, -1)).sum(-1).mean())
    return sum(terms) / len(terms)


def local_class_token(case: Case, crop: Tensor) -> Tensor:
    """A crop by itself, its table of positions resized channel by channel."""
    encoder = case.encoder
    table, side = encoder.pos_embed[0], LOCAL_SIDE // 4
    grid = table[1:].T.reshape(1, -1, encoder.side, encoder.side)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic")
    places = grid.reshape(-1, side * side).T
    pixels = (crop.double() / 255 - 0.5) / 0.25
    projection = encoder.patch_embed.proj
    patches = torch.nn.functional.conv2d(pixels.permute(0, 3, 1, 2), projection.weight, projection.bias, stride=4)
    x = patches.flatten(2).transpose(1, 2) + places
    x = torch.cat([(encoder.cls_token[0] + table[:1]).expand(len(crop), 1, -1), x], 1)
    for layer in encoder.blocks:
        x = block(x, layer)
    return layer_norm(x[:, 0], encoder.norm)


def mae(case: Case) -> Tensor:
    decoder, (plan,), (images,) = case.framework.decoder, case.plans, case.views
    seen = student_tokens(case, 0) @ decoder.embed.weight.T + decoder.embed.bias
    rows, errors = [], []
    for b in range(BATCH):
        kept = plan.src[b].tolist()
        places = [seen[b, 1 + kept.index(i)] if i in kept else decoder.mask_token for i in range(9)]
        rows.append(torch.stack([seen[b, 0], *places]) + decoder.pos_embed)
    x = torch.stack(rows)
    for layer in decoder.blocks:
        x = block(x, layer)
    predicted = layer_norm(x, decoder.norm) @ decoder.head.weight.T + decoder.head.bias
    for b in range(BATCH):
        for i in set(range(9)) - set(plan.src[b].tolist()):
            row, column = 4 * (i // 3), 4 * (i % 3)
            patch = (images[b, row : row + 4, column : column + 4].double() / 255 - 0.5) / 0.25
            wanted = (patch - patch.mean()) / (patch.var(unbiased=True) + 1e-6).sqrt()
            errors.append((predicted[b, 1 + i] - wanted.flatten()).square().mean())
    return torch.stack(errors).mean()


ORACLES = {"moco_v3": moco_v3, "simclr": simclr, "dino": dino, "dino_batch_norm": dino, "mae": mae}


def main(name: str, rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.Tensor.float = torch.Tensor.double  # what computes in fp32 computes in fp64
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    case, share = Case(name), BATCH // world
    loss = case.loss(slice(rank * share, (rank + 1) * share))
    loss.backward()
    named = case.named_parameters()
    average_gradients(named.values())
    found = {"loss": loss.detach(), "gradients": {n: p.grad for n, p in named.items()}}
    case.framework.finish_step()
    found["buffers"] = {n: b for n, b in case.framework.named_buffers() if "teacher" not in n}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
