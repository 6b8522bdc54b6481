"""Operations on tensors. Importing this imports neither triton nor xformers nor anything of training."""

from .adamw_ema import adamw_ema
from .add_layer_norm import add_layer_norm
from .attention import attention, attention_choice
from .gelu import gelu
from .impl import Impl, ImplUnavailableError
from .info_nce import info_nce, nt_xent
from .layer_norm import layer_norm
from .linear import linear, pack_weight
from .ops import OP_OF, OPS, cpu_paths, resolve_impl
from .patch_embed import patch_embed
from .patch_mse import patch_mse
from .prototype_ce import prototype_ce
from .restore import dropped_patches, restore
from .token_bce import token_bce
from .token_plan import TokenPlan, dense_plan, token_plan

__all__ = [
    "OPS",
    "OP_OF",
    "Impl",
    "ImplUnavailableError",
    "TokenPlan",
    "adamw_ema",
    "add_layer_norm",
    "attention",
    "attention_choice",
    "cpu_paths",
    "dense_plan",
    "dropped_patches",
    "gelu",
    "info_nce",
    "layer_norm",
    "linear",
    "nt_xent",
    "pack_weight",
    "patch_embed",
    "patch_mse",
    "prototype_ce",
    "resolve_impl",
    "restore",
    "token_bce",
    "token_plan",
]
