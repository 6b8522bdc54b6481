"""Run by test_info_nce_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

import torch

from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits, values_and_gradients
from misplace.kernels.testing.contrastive import FORMS, WANTED, make, others, ours, with_itself
from misplace.kernels.testing.shapes import LAYOUTS

# queries, keys, width, first row, temperature
CASES = {
    "info_nce": [(1, 2, 3, 1, 0.2), (33, 70, 33, 37, 0.2), (5, 9, 64, 0, 0.005)],
    "nt_xent": [(2, 3, 7, 1, 0.2), (34, 70, 33, 36, 0.2), (6, 9, 64, 0, 0.005)],
}


def check_cases() -> None:
    for form, cases in CASES.items():
        for queries, keys, width, first_row, temperature in cases:
            given = dict(temperature=temperature, first_row=first_row)
            for dtype in (torch.float32, torch.bfloat16):
                tensors = make(queries, keys, width, dtype)
                check(ours(form, "triton", **given), *others(form, **given), tensors, WANTED)
                print("within the tolerance", form, queries, keys, width, dtype, flush=True)
        check(ours(form, "triton"), *others(form), make(6, 9, 33, torch.float16), WANTED)
        print("within the tolerance", form, torch.float16, flush=True)


def check_own_keys() -> None:
    rows = {"query": make(34, 34, 33)["query"]}
    for form in FORMS:
        check(with_itself(ours(form, "triton")), *map(with_itself, others(form)), rows, ["query"])
        print("within the tolerance", form, "of itself", flush=True)


def check_layouts() -> None:
    tensors = make(4, 4, 33)
    expected = values_and_gradients(ours("nt_xent", "triton"), tensors, WANTED)
    for change in LAYOUTS.values():
        changed = {name: change(tensor) for name, tensor in tensors.items()}
        for name, result in values_and_gradients(ours("nt_xent", "triton"), changed, WANTED).items():
            assert torch.equal(result, expected[name]), name


def check_single_gradients() -> None:
    tensors = make(6, 9, 33)
    every = values_and_gradients(ours("nt_xent", "triton"), tensors, WANTED)
    for name in WANTED:
        alone = values_and_gradients(ours("nt_xent", "triton"), tensors, [name])
        assert torch.equal(alone[f"d {name}"], every[f"d {name}"]) and torch.equal(alone["value 0"], every["value 0"])


def check_refusals() -> None:
    for tensors, words in ((make(2, 2, 8, torch.float64), "float64"), (make(2, 2, 513), "512, not 513")):
        try:
            ours("info_nce", "triton")(**tensors)
        except (TypeError, ValueError) as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"took {words}")


def check_extremes() -> None:
    zero = torch.zeros(3, 4, requires_grad=True)
    ours("info_nce", "triton")(zero, torch.eye(3, 4)).backward()
    assert zero.grad.isfinite().all()
    collapsed = ours("nt_xent", "triton")(torch.ones(4, 8), torch.ones(40, 8))
    torch.testing.assert_close(collapsed, torch.tensor(39.0).log())


def main() -> None:
    torch.set_num_threads(1)
    check_cases()
    check_own_keys()
    check_layouts()
    check_single_gradients()
    check_refusals()
    check_extremes()
    tensors = make(6, 9, 33, torch.bfloat16)
    require_same_bits(ours("nt_xent", "triton"), tensors, WANTED)
    require_one_graph(ours("nt_xent", "triton"), tensors, WANTED)
    query, key = make(2, 3, 7).values()
    for keys, gradients in ((key, (True, True)), (key, (True, False)), (None, (True, True)), (key, (False, False))):
        arguments = (query, keys, 0.2, 0, True, *gradients)
        torch.library.opcheck(torch.ops.misplace.info_nce_triton.default, arguments)
    print("opcheck passed")


if __name__ == "__main__":
    main()
