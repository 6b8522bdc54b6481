// misplace::prototype_ce. The schema lives in kernels/prototype_ce/native.py; every device checks with `check`.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

namespace misplace::prototype_ce {

// loss scalar, batch centre [P], d_student [V, B, D], d_prototypes [P, D]. Gradients of the loss itself; one that is
// not wanted is empty.
using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

struct Inputs {
  const at::Tensor &student, &teacher, &prototypes, &teacher_prototypes, &centre, &teacher_temperature;
  double student_temperature;
  bool of_student, of_prototypes;
};

inline void check(const Inputs& in) {
  TORCH_CHECK_VALUE(in.student.dim() == 3 && in.teacher.dim() == 3 && in.prototypes.dim() == 2,
                    "prototype_ce: need student [V, B, D], teacher [G, B, D] and prototypes [P, D]");
  const int64_t views = in.student.size(0), batch = in.student.size(1), width = in.student.size(2);
  const int64_t teacher_views = in.teacher.size(0), prototypes = in.prototypes.size(0);
  TORCH_CHECK_VALUE(in.student.numel() > 0 && teacher_views > 0 && prototypes > 0 && views * teacher_views > 1,
                    "prototype_ce: no pair of crops, or no prototypes");
  const int64_t of_teacher[] = {teacher_views, batch, width}, of_prototypes[] = {prototypes, width};
  TORCH_CHECK_VALUE(in.teacher.sizes() == at::IntArrayRef(of_teacher) &&
                        in.prototypes.sizes() == at::IntArrayRef(of_prototypes) &&
                        in.teacher_prototypes.sizes() == at::IntArrayRef(of_prototypes) &&
                        in.centre.sizes() == at::IntArrayRef({prototypes}),
                    "prototype_ce: teacher must be [G, B, D] of the student, both prototypes [P, D], centre [P]");
  TORCH_CHECK_VALUE(in.teacher_temperature.dim() == 0 && in.student_temperature > 0,
                    "prototype_ce: teacher_temperature must be [], student_temperature above 0");
  TORCH_CHECK_TYPE(in.teacher.scalar_type() == in.student.scalar_type() &&
                       in.teacher_prototypes.scalar_type() == in.prototypes.scalar_type(),
                   "prototype_ce: student and teacher must have one dtype, and so must their prototypes");
}

}  // namespace misplace::prototype_ce
