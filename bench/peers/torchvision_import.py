"""torchvision, also where it is a CUDA build beside a CPU torch."""

import importlib
import sys
import types

from misplace.engine.errors import UserError


def import_torchvision() -> types.ModuleType:
    """The package; its operators' descriptions are left out where it lacks the operators."""
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise UserError(f"bench: a peer needs timm and torchvision ({error}); pip install timm torchvision") from None
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        name = "torchvision._meta_registrations"
        sys.modules[name] = types.ModuleType(name)
    return importlib.import_module("torchvision")
