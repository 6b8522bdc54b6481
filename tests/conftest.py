"""What holds for every test: the longest files come first; what needs a CUDA device runs only where there is one."""

import pytest
import torch

# Minutes each: begun last, one of them would keep a single worker busy while the others are done.
LONGEST_FILES = ("test_resume.py", "test_fused_agrees.py", "test_install.py", "test_compare.py")


@pytest.hookimpl(tryfirst=True)  # before -m chooses by mark
def pytest_collection_modifyitems(items):
    for item in items:
        if _is_given_cuda(item):
            item.add_marker(pytest.mark.gpu)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=_place)  # stable: the rest stays as collected


def _place(item: pytest.Item) -> int:
    name = item.path.name
    return LONGEST_FILES.index(name) if name in LONGEST_FILES else len(LONGEST_FILES)


def _is_given_cuda(item: pytest.Item) -> bool:
    """One of its parameters is "cuda", or a tuple such as ("cuda", impl)."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(part, str) and part == "cuda" for part in parts)
