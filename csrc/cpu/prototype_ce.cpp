// prototype_ce on the CPU: a tile of prototypes at a time, its logits in a core's cache, chunks of tiles in parallel.
//
// The first pass has every row's log-sum-exp and the loss, the second makes a tile's logits again and has the
// gradients. The prototypes are cut into chunks by their number alone, and what the chunks leave is added in their
// order: the same bits for any number of threads.
#include "prototype_ce.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string>
#include <string_view>

#include "cpu/isa.h"
#include "cpu/prototype_ce_passes.h"
#define MISPLACE_OP prototype_ce
#define MISPLACE_BODY "cpu/prototype_ce_body.h"
#include "cpu/each_isa.h"

namespace misplace::prototype_ce {
namespace {

template <class F>
const Kernels<F>& kernels_for(Isa isa) {
#ifdef MISPLACE_X86
  static const Kernels<F> of_bf16 = avx512_bf16::kernels<F>(), of_avx512 = avx512::kernels<F>(),
                          of_avx2 = avx2::kernels<F>();
  if (isa >= Isa::avx512_bf16) return of_bf16;
  if (isa >= Isa::avx512) return of_avx512;
  if (isa >= Isa::avx2) return of_avx2;
#endif
  static const Kernels<F> of_plain = plain::kernels<F>();
  return of_plain;
}

// Products in bf16 where the CPU has them; elsewhere bf16 features are widened.
bool multiplies_bf16(Isa isa) { return isa >= Isa::avx512_bf16 && patch_embed::multiplies_bf16(); }

template <class T>
constexpr at::ScalarType dtype_of = sizeof(T) == 2 ? at::kBFloat16 : at::kFloat;

template <class T>
at::Tensor readable(const at::Tensor& tensor) {
  return tensor.to(dtype_of<T>).contiguous();
}

template <class T>
const T* values(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// Sums of the chunks [chunks, columns, lanes] -> gradients of the student's rows.
template <class Feature, class F>
void finish_student(const at::Tensor& chunks, const Feature* student, const float* inverse, const Sizes& sizes,
                    float scale, const Kernels<F>& kernels, Feature* out) {
  const int64_t columns = sizes.columns(), lanes = sizes.lanes(), width = sizes.width;
  const float* from = data<float>(chunks);
  at::parallel_for(0, lanes / 16, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> d_unit(16 * columns);
    for (int64_t first = begin * 16; first < end * 16; first += 16) {
      const int64_t count = std::min<int64_t>(16, sizes.rows() - first);
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t row = 0; row < count; ++row) {
          float total = 0;
          for (int64_t chunk = 0; chunk < chunks.size(0); ++chunk) {
            total += from[(chunk * columns + c) * lanes + first + row];
          }
          d_unit[row * columns + c] = total;
        }
      }
      backward_of<Feature>(kernels)(d_unit.data(), student + first * width, inverse + first, count, width, columns,
                                    scale, out + first * width);
    }
  });
}

template <class Feature, class F, class T>
Result compute(const Inputs& in, const Kernels<F>& kernels) {
  const Sizes sizes{in.student.size(0), in.teacher.size(0), in.student.size(1), in.student.size(2),
                    in.prototypes.size(0)};
  const at::Tensor student = readable<Feature>(in.student), teacher = readable<Feature>(in.teacher);
  const at::Tensor prototypes = readable<T>(in.prototypes), of_teacher = readable<T>(in.teacher_prototypes);
  const at::Tensor centre = readable<float>(in.centre);
  const float student_scale = log2_e / static_cast<float>(in.student_temperature);
  const float teacher_scale = log2_e / in.teacher_temperature.item<float>();

  const at::Tensor loss = floats({}), batch_centre = floats({sizes.prototypes});
  const at::Tensor d_student = at::empty(in.of_student ? student.sizes() : at::IntArrayRef({0}), student.options());
  const at::Tensor d_prototypes =
      at::empty(in.of_prototypes ? prototypes.sizes() : at::IntArrayRef({0}), prototypes.options());
  Passes<T, F> passes(sizes, values<Feature>(student), values<Feature>(teacher), values<T>(prototypes),
                      values<T>(of_teacher), values<float>(centre), student_scale, teacher_scale, kernels);
  const int64_t pairs = sizes.views * sizes.teacher_views - std::min(sizes.views, sizes.teacher_views);
  const double share = 1.0 / static_cast<double>(pairs * sizes.batch);
  *data<float>(loss) = static_cast<float>(passes.find_loss(data<float>(batch_centre)) * share);
  if (!in.of_student && !in.of_prototypes) return {loss, batch_centre, d_student, d_prototypes};

  const at::Tensor chunks = floats({in.of_student ? passes.num_chunks() : 0, sizes.columns(), sizes.lanes()});
  const float scale = static_cast<float>(share / in.student_temperature);
  passes.find_gradients(in.of_student ? data<float>(chunks) : nullptr,
                        in.of_prototypes ? data<T>(d_prototypes) : nullptr, scale);
  if (in.of_student) {
    finish_student(chunks, values<Feature>(student), passes.inverse_lengths(), sizes, scale, kernels,
                   data<Feature>(d_student));
  }
  return {loss, batch_centre, d_student, d_prototypes};
}

template <class Feature, class F>
Result compute_of_prototypes(const Inputs& in, Isa isa) {
  const Kernels<F>& kernels = kernels_for<F>(isa);
  switch (in.prototypes.scalar_type()) {
    case at::kFloat: return compute<Feature, F, float>(in, kernels);
    case at::kBFloat16: return compute<Feature, F, uint16_t>(in, kernels);
    default:
      TORCH_CHECK_TYPE(false, "prototype_ce: impl=native takes bfloat16 or float32 prototypes, not ",
                       in.prototypes.scalar_type());
  }
}

Result prototype_ce(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& prototypes,
                    const at::Tensor& teacher_prototypes, const at::Tensor& centre,
                    const at::Tensor& teacher_temperature, double student_temperature, bool of_student,
                    bool of_prototypes, c10::string_view isa_name) {
  const Inputs in{student, teacher, prototypes, teacher_prototypes, centre, teacher_temperature, student_temperature,
                  of_student, of_prototypes};
  check(in);
  const Isa isa = isa_named(isa_name);
  switch (student.scalar_type()) {
    case at::kFloat: return compute_of_prototypes<float, float>(in, isa);
    case at::kBFloat16:
      if (multiplies_bf16(isa)) return compute_of_prototypes<uint16_t, uint16_t>(in, isa);
      return compute_of_prototypes<uint16_t, float>(in, isa);
    default:
      TORCH_CHECK_TYPE(false, "prototype_ce: impl=native takes bfloat16 or float32 features on the CPU, not ",
                       student.scalar_type());
  }
}

std::string prototype_ce_path() {
  const Isa isa = best_isa();
  return std::string(isa_names[static_cast<int>(isa)]) + (multiplies_bf16(isa) ? "" : ", bf16 products in fp32");
}

}  // namespace
}  // namespace misplace::prototype_ce

TORCH_LIBRARY_IMPL(misplace, CPU, m) { m.impl("prototype_ce", &misplace::prototype_ce::prototype_ce); }
TORCH_LIBRARY_IMPL(misplace, CompositeExplicitAutograd, m) {
  m.impl("prototype_ce_path", &misplace::prototype_ce::prototype_ce_path);
}
