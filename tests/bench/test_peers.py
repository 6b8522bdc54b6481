"""A compiled peer stays compiled."""

import pytest
import torch

from misplace.bench import peers


@pytest.mark.slow
def test_compiled_for_every_shape_past_dynamos_limit():
    """Without a reset the third shape raises, and without fullgraph it would run eager under the name of compiled."""
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in (3, 4, 5, 6):
            doubled = peers.compiled(_double, torch.device("cpu"))
            assert doubled(torch.ones(size)).tolist() == [2.0] * size


def _double(x):
    return 2 * x
