"""What holds for every test: those marked gpu, or given a CUDA device, run only where there is one."""

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before -m chooses by mark
def pytest_collection_modifyitems(items):
    for item in items:
        if _is_given_cuda(item):
            item.add_marker(pytest.mark.gpu)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _is_given_cuda(item: pytest.Item) -> bool:
    """One of its parameters is "cuda", or a tuple such as ("cuda", impl)."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(part, str) and part == "cuda" for part in parts)
