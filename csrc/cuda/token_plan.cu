// token_plan on the GPU in one launch: a block makes one image's plan, a thread per patch.
//
// Formula       kernels/token_plan/reference.py; the same bits. The algorithm is shared/token_plan_block.h.
// Bytes moved   8 B in, 9 B K out: 0.5 MB for 1,024 images at K = 49, far below a launch.
// Operations    per image L Philox calls and L^2 comparisons of keys that all threads read at once from shared
//               memory; three barriers, where a bitonic sort of 256 keys has 36.
// Saved         nothing: a plan has no gradient.
#include "cuda/token_plan_kernel.h"

#include <algorithm>

namespace misplace::token_plan {
namespace {

struct SetSharedBit {
  __device__ __forceinline__ void operator()(uint32_t* word, uint32_t bit) const { atomicOr(word, bit); }
};

__global__ void __launch_bounds__(max_patches) token_plan_kernel(Images images, Sizes sizes, Draw by, Output out) {
  __shared__ Board board;
  const int patch = static_cast<int>(threadIdx.x);
  Token token{};
  for (int64_t image = blockIdx.x; image < images.num_images; image += gridDim.x) {
    const uint64_t index = static_cast<uint64_t>(images.index[image * images.stride]);
    draw_phase(patch, token, board, sizes, index, by);
    __syncthreads();
    rank_phase(patch, token, board, sizes, SetSharedBit{});
    __syncthreads();
    const int64_t row = image * sizes.num_kept;
    write_phase(patch, token, board, sizes, out.src + row, out.pos + row, out.wrong + row);
    __syncthreads();  // the next image's draw overwrites what write_phase reads
  }
}

constexpr int warp = 32;
constexpr int64_t most_blocks = INT32_MAX;

}  // namespace

void launch(const Images& images, const Sizes& sizes, const Draw& by, const Output& out, cudaStream_t stream) {
  if (images.num_images == 0) return;
  const unsigned threads = (sizes.num_patches + warp - 1) / warp * warp;
  const unsigned blocks = static_cast<unsigned>(std::min(images.num_images, most_blocks));
  token_plan_kernel<<<blocks, threads, 0, stream>>>(images, sizes, by, out);
}

}  // namespace misplace::token_plan
