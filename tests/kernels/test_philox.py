"""Philox4x32-10 in PyTorch and C++ against the published known answers; what its counter words mean."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from misplace.kernels.philox import Stream, draw, philox4x32, uniform

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

# Random123, tests/kat_vectors: counter, seed (key words low, high), words
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

TWIN = """
#include "shared/token_plan.h"
using namespace misplace;
extern "C" void philox(const uint32_t* c, uint64_t seed, uint32_t* out) {
  const Words words = philox4x32({{c[0], c[1], c[2], c[3]}}, seed);
  for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}
extern "C" void keys(int n, uint64_t index, uint64_t seed, uint32_t epoch, uint32_t view, uint64_t threshold,
                     uint64_t* out) {
  for (int i = 0; i < n; ++i) out[i] = token_plan::make_key(i, index, {seed, epoch, view, threshold});
}
"""


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """csrc/shared as a plain library: no torch, so that device code can include the same text."""
    if COMPILER is None:
        pytest.skip("no C++ compiler on PATH")
    folder = tmp_path_factory.mktemp("twin")
    (folder / "twin.cpp").write_text(TWIN)
    command = [COMPILER, "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{CSRC}", "twin.cpp", "-o", "twin.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "twin.so"))


@pytest.mark.parametrize("counter, seed, words", KNOWN_ANSWERS)
def test_known_answers(counter, seed, words):
    drawn = philox4x32(tuple(torch.tensor([c]) for c in counter), seed)
    assert tuple(int(word) for word in drawn) == words


@pytest.mark.parametrize("counter, seed, words", KNOWN_ANSWERS)
def test_known_answers_of_the_twin(twin, counter, seed, words):
    drawn = (ctypes.c_uint32 * 4)()
    twin.philox((ctypes.c_uint32 * 4)(*counter), ctypes.c_uint64(seed), drawn)
    assert tuple(drawn) == words


@pytest.mark.parametrize("index", [3, 2**31, 2**32 + 3, 2**63 - 1])
def test_twin_draws_the_same_words(twin, index):
    items, seed, epoch, view, threshold = 300, 2**64 - 9, 2**32 - 2, 255, 2**31
    keys = (ctypes.c_uint64 * items)()
    twin.keys(
        items, ctypes.c_uint64(index), ctypes.c_uint64(seed), ctypes.c_uint32(epoch), view,
        ctypes.c_uint64(threshold), keys,
    )  # fmt: skip
    words = draw(torch.tensor([index]), items, seed=seed, epoch=epoch, view=view, stream=Stream.TOKEN_PLAN)
    word0, word1 = words[0][0].tolist(), words[1][0].tolist()
    flags = [word < threshold for word in word1]
    assert list(keys) == [word0[i] << 32 | i << 1 | flags[i] for i in range(items)]


def test_counter_words_are_what_the_docstring_says():
    index = 5 * 2**32 + 9
    words = draw(torch.tensor([index]), 4, seed=11, epoch=6, view=3, stream=Stream.RENDER)
    word0 = torch.tensor([2 | 3 << 16 | 4 << 24])
    expected = philox4x32((word0, torch.tensor([6]), torch.tensor([9]), torch.tensor([5])), 11)
    assert [int(word[0, 2]) for word in words] == [int(word) for word in expected]


def test_every_part_of_the_name_counts():
    def first(index=1, **changed):
        name = dict(seed=1, epoch=1, view=1, stream=Stream.TOKEN_PLAN) | changed
        return tuple(draw(torch.tensor([index]), 8, **name)[0][0].tolist())

    drawn = [first(), first(1 + 2**32), first(2), first(seed=2), first(seed=1 + 2**32), first(epoch=2),
             first(view=2), first(stream=Stream.RENDER)]  # fmt: skip
    assert len(set(drawn)) == len(drawn)


def test_uniform_is_exact_and_below_one():
    words = torch.tensor([0, 1, 2**31, 2**32 - 1])
    assert uniform(words).tolist() == [0.0, 2.0**-32, 0.5, 1 - 2.0**-32]
