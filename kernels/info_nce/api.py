"""info_nce: the contrastive loss between queries and the keys of all ranks."""

from torch import Tensor

from ..checks import require_device, require_dims, require_floating
from ..impl import Impl, choose
from . import reference

SUPPORTED = {"cpu": (Impl.REFERENCE,), "cuda": (Impl.REFERENCE,)}
RUN = {Impl.REFERENCE: reference.info_nce}


def info_nce(
    query: Tensor,  # [N, D]
    key: Tensor,  # [M, D], the keys of all ranks
    *,
    temperature: float,
    first_row: int = 0,
    impl: Impl | str = "auto",
) -> Tensor:  # scalar, fp32 (fp64 for fp64 inputs), nats
    """Mean cross entropy of picking, for query i, key first_row + i among all M by cosine / temperature.

    first_row: where this rank's own keys begin. Rows need not be normalised. Differentiable in query and
    key (give the key detached where it comes from a teacher). The factor 2 * temperature of MoCo v3 is the
    caller's. ValueError for a shape, a device, no queries, temperature <= 0 or a positive beyond the last
    key; TypeError for dtypes.
    """
    require_dims("info_nce", "query", query, 2, "[N, D]")
    require_dims("info_nce", "key", key, 2, "[M, D]")
    require_floating("info_nce", query=query, key=key)
    require_device("info_nce", query.device, key=key)
    if query.shape[1] != key.shape[1] or query.numel() == 0:
        raise ValueError(f"info_nce: query {list(query.shape)} and key {list(key.shape)} must be [N, D] and [M, D]")
    if not temperature > 0:
        raise ValueError(f"info_nce: temperature must be above 0, not {temperature}")
    if first_row < 0 or first_row + query.shape[0] > key.shape[0]:
        raise ValueError(f"info_nce: first_row {first_row} + {query.shape[0]} queries leaves the {key.shape[0]} keys")
    run = RUN[choose("info_nce", impl, query.device, SUPPORTED)]
    return run(query, key, temperature, first_row)
