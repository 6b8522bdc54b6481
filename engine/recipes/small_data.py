"""What every recipe does on small data, in minutes. [O]"""

from ..config import Config, DataConfig, ModelConfig, RunConfig
from ..data.augmentation import AugmentConfig
from ..optim import OptimConfig
from ..pretexts import NoPretextConfig

GENTLE_CROPS = (0.8, 1.0)  # of the image; with .2 or .5 to 1, Fashion-MNIST gave a lower k-NN and AUROC


def small_data(
    recipe: str, model: str, framework, *, batch_size: int = 128, augment: dict | None = None, pretext=None
) -> Config:
    """Gentle crops, PyTorch's own init, a rate that suits minutes. augment: changes of AugmentConfig."""
    settings = {"crop_scale": GENTLE_CROPS, "blur_p": (0.0, 0.0), "solarize_p": (0.0, 0.0)} | (augment or {})
    return Config(
        recipe=recipe,
        model=ModelConfig(name=model, init="uniform_fan_in"),
        data=DataConfig(batch_size=batch_size, augment=AugmentConfig(**settings)),
        framework=framework,
        pretext=pretext or NoPretextConfig(),
        optim=OptimConfig(base_lr=2e-3, weight_decay=0.05, betas=(0.9, 0.95), warmup=0.1, clip_norm=3.0),
        run=RunConfig(budget="10m"),
    )
