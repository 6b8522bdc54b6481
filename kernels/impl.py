"""Which implementations of an op exist on this machine, and why one does not.

An op asks `choose` once per call; nothing here ever swaps a requested implementation for another.
"""

import enum
import functools
import importlib.util
import os

import torch


class Impl(enum.StrEnum):
    """How an op is computed.

    REFERENCE is eager PyTorch in at least fp32 (the specification); TORCH is PyTorch's own operator in the
    caller's dtype; NATIVE is misplace.kernels._C; ONEDNN is oneDNN's operator inside PyTorch; TRITON and XFORMERS
    are what they say; SDPA_* is PyTorch's scaled_dot_product_attention held to the backend of that name.
    """

    REFERENCE = "reference"
    TORCH = "torch"
    NATIVE = "native"
    ONEDNN = "onednn"
    TRITON = "triton"
    XFORMERS = "xformers"
    SDPA_FLASH = "sdpa-flash"
    SDPA_CUDNN = "sdpa-cudnn"
    SDPA_EFFICIENT = "sdpa-efficient"


class ImplUnavailableError(RuntimeError):
    """An implementation was asked for by name and cannot run here; the message says why."""


def why_unavailable(impl: Impl, device: torch.device) -> str | None:
    """None when `impl` can run on tensors of `device`, otherwise one line with the reason."""
    match impl:
        case Impl.REFERENCE | Impl.TORCH:
            return None
        case Impl.NATIVE:
            return _why_no_native(device.type)
        case Impl.ONEDNN:
            return _why_no_onednn(device.type)
        case Impl.TRITON:
            return _why_no_triton(device.type)
        case Impl.XFORMERS:
            return _why_no_xformers(device.type)
        case Impl.SDPA_FLASH:  # the one backend with a form for the CPU
            return None if device.type in ("cpu", "cuda") else f"{impl.value} needs a CPU or CUDA device"
        case Impl.SDPA_CUDNN | Impl.SDPA_EFFICIENT:
            return None if device.type == "cuda" else f"{impl.value} needs a CUDA device, not {device.type}"


@functools.cache
def _why_no_native(device_type: str) -> str | None:
    try:
        from . import _C
    except ImportError as error:
        return f"misplace.kernels._C is not built ({error}); install with a C++ compiler and ninja on PATH"
    if device_type == "cpu":
        return None
    built_for = _C.build_info()
    return None if built_for.get(device_type) else f"misplace.kernels._C was built without {device_type}"


def _why_no_onednn(device_type: str) -> str | None:
    return _ONEDNN_HERE if device_type == "cpu" else f"oneDNN computes on the CPU, not on {device_type}"


def _ask_onednn() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    return None if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "this CPU has no AVX-512 for oneDNN's bf16"


_ONEDNN_HERE = _ask_onednn()  # asked here and not in `choose`, whose graph torch.compile would break on it


@functools.cache
def _why_no_triton(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type != "cuda" and not interpreted:
        return f"triton needs a CUDA device, not {device_type} (TRITON_INTERPRET=1 interprets it, slowly)"
    return None


@functools.cache
def _why_no_xformers(device_type: str) -> str | None:
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed"
    return None if device_type == "cuda" else f"xformers needs a CUDA device, not {device_type}"


def choose(
    op: str,
    impl: Impl | str,
    device: torch.device,
    supported: dict[str, tuple[Impl, ...]],
) -> Impl:
    """The implementation that will run.

    `supported` maps a device type to the op's implementations there, best first; "auto" takes the first that is
    available. A named implementation that cannot run raises ImplUnavailableError with the reason.
    """
    offered = supported.get(device.type, ())
    if impl == "auto":
        for candidate in offered:
            if why_unavailable(candidate, device) is None:
                return candidate
        raise ImplUnavailableError(f"{op}: no implementation for {device.type}")
    try:
        wanted = Impl(impl)
    except ValueError:
        known = ", ".join(["auto", *Impl])
        raise ImplUnavailableError(f"{op}: unknown impl {impl!r}; one of {known}") from None
    if reason := why_unavailable(wanted, device):
        raise ImplUnavailableError(f"{op}: impl={wanted.value} is not available: {reason}")
    if wanted not in offered:
        have = ", ".join(offered)
        raise ImplUnavailableError(f"{op}: has no impl={wanted.value} on {device.type}; it has {have}")
    return wanted


def choose_for_dtype(
    op: str,
    impl: Impl | str,
    tensor: torch.Tensor,
    supported: dict[str, tuple[Impl, ...]],
    dtypes: dict[Impl, tuple[torch.dtype, ...]],
) -> Impl:
    """choose, where some implementations take few dtypes: "auto" passes over those, a name for one is a TypeError.

    dtypes: what they take; an implementation that is not named there takes every dtype.
    """
    for limited, taken in dtypes.items():
        if impl == limited and tensor.dtype not in taken:
            known = ", ".join(map(str, taken))
            raise TypeError(f"{op}: impl={limited.value} takes {known}, not {tensor.dtype}")
    offered = supported.get(tensor.device.type, ())
    fitting = tuple(each for each in offered if tensor.dtype in dtypes.get(each, (tensor.dtype,)))
    return choose(op, impl, tensor.device, {tensor.device.type: fitting})
