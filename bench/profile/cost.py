"""The least traffic and the matrix work of a recorded call: what its floor is made of.

Traffic counts every tensor once: forward reads the arguments and writes the outputs; backward reads the arguments
and the outputs' gradients and writes the gradients that are asked for. Matrix work is what the reference does,
counted by torch's own counter, less the patches that it embeds and drops.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .record import Example

# an op in place: arguments that it only reads, or only writes; it does both with the others
READ_ONLY = {"adamw_ema": {"gradients"}}
WRITE_ONLY = {"adamw_ema": {"student_copies", "teacher_copies"}}
# gradients can be computed with the value: backward need not read the arguments again
GRADIENT_IN_FORWARD = {"token_bce", "patch_mse", "prototype_ce", "info_nce", "nt_xent"}


class Cost(NamedTuple):
    bytes_moved: int
    operations: int = 0


def forward_bytes(op: str, example: Example) -> int:
    arguments = example.arguments
    if not example.outputs:
        read = {k: v for k, v in arguments.items() if k not in WRITE_ONLY.get(op, ())}
        written = {k: v for k, v in arguments.items() if k not in READ_ONLY.get(op, ())}
        return nbytes(read) + nbytes(written)
    return _arguments_bytes(op, arguments) + nbytes(example.outputs)


def backward_bytes(op: str, example: Example) -> int:
    arguments = example.arguments
    wanted = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.requires_grad]
    arriving = nbytes([out for out in example.outputs if out.requires_grad])
    if op == "patch_embed" and not any(
        _wants_gradient(arguments, name) for name in ("images", "weight", "bias", "pos_table", "no_position")
    ):
        arriving = arriving // example.outputs[0].shape[1]  # the class token's row is all that is needed
        return arriving + nbytes(wanted)
    again = 0 if op in GRADIENT_IN_FORWARD else _arguments_bytes(op, arguments)
    return again + arriving + nbytes(wanted)


def count_operations(run: Callable[[], Any]) -> int:
    """Floating-point operations of matrix work in `run`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def kept_share(op: str, arguments: dict[str, Any]) -> float:
    """The part of the images that patch_embed has to look at; 1 for every other op."""
    if op != "patch_embed":
        return 1.0
    return arguments["src"].shape[1] / (arguments["pos_table"].shape[0] - 1)


def nbytes(values: Any) -> int:
    return sum(leaf.nbytes for leaf in _distinct(tree_leaves(values)))


def _distinct(leaves: Iterable) -> Iterable[Tensor]:
    return {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values()


def _wants_gradient(arguments: dict[str, Any], name: str) -> bool:
    value = arguments.get(name)
    return isinstance(value, Tensor) and value.requires_grad


def _arguments_bytes(op: str, arguments: dict[str, Any]) -> int:
    """What a call has to read: copies instead of their masters, and only the kept part of the images."""
    unread = {
        name.removesuffix("_copy") for name, value in arguments.items() if name.endswith("_copy") and value is not None
    } | {"packed"}  # the same weight in another layout
    read = nbytes({name: value for name, value in arguments.items() if name not in unread})
    if op == "patch_embed":
        read -= round(arguments["images"].nbytes * (1 - kept_share(op, arguments)))
    return read
