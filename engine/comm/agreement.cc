#include "engine/comm/agreement.h"

#include <algorithm>
#include <vector>

#include "engine/base/status_macros.h"

namespace apb::comm {
namespace {

// All ranks' values, by rank.
template <typename T>
absl::StatusOr<std::vector<T>> Everybodys(Communicator& control, T mine) {
  static_assert(sizeof(T) == sizeof(int64_t));
  const int64_t ranks = control.size();
  std::vector<T> all(ranks);
  HostStream stream;
  APB_RETURN_IF_ERROR(control.AllGather(
      kernels::TensorView::Contiguous(&mine, kernels::DType::kI64, {1}),
      kernels::TensorView::Contiguous(all.data(), kernels::DType::kI64, {ranks}), stream));
  return all;
}

}  // namespace

absl::StatusOr<int64_t> MinOverRanks(Communicator& control, int64_t value) {
  APB_ASSIGN_OR_RETURN(const std::vector<int64_t> all, Everybodys(control, value));
  return *std::min_element(all.begin(), all.end());
}

absl::StatusOr<double> MaxOverRanks(Communicator& control, double value) {
  APB_ASSIGN_OR_RETURN(const std::vector<double> all, Everybodys(control, value));
  return *std::max_element(all.begin(), all.end());
}

absl::StatusOr<bool> AllAgree(Communicator& control, bool mine) {
  APB_ASSIGN_OR_RETURN(const int64_t least, MinOverRanks(control, mine ? 1 : 0));
  return least == 1;
}

}  // namespace apb::comm
