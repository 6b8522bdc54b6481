"""Parameter groups whose learning rate falls from the head to the patches (BEiT, arXiv 2106.08254; as in MAE)."""

from .classifier import Classifier


def layer_of(name: str, depth: int) -> int:
    """0 of what makes the tokens, b + 1 of block b, depth + 1 of the norm and the head behind them. [S] (MAE)"""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return 0 if name.startswith("encoder.") else depth + 1


def decays(name: str, dimensions: int) -> bool:
    """Weights decay; biases, norms, the class token and the positions do not. [S] (MAE)"""
    return dimensions > 1 and not name.endswith(("cls_token", "pos_embed"))


def parameter_groups(classifier: Classifier, layer_decay: float, weight_decay: float) -> list[dict]:
    """Groups for torch.optim, layer after layer; `scale` = layer_decay^(depth + 1 - layer) multiplies the rate."""
    depth = len(classifier.encoder.blocks)
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decayed = layer_of(name, depth), decays(name, parameter.dim())
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "scale": layer_decay ** (depth + 1 - layer),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
