// Selection of the tokens of a passing block by their scores: the same on every CPU.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/cpu/operations_on_cpu.h"
#include "kernels/cpu/row_address.h"

namespace apb::kernels {

void OnCpu(const MaxPoolRowsArgs& args, int threads) {
  const TensorView &scores = args.scores, &out = args.out;
  const int64_t rows = scores.shape[0], heads = scores.shape[1], reach = args.window / 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > 1024)
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      float top = -std::numeric_limits<float>::infinity();
      for (int64_t r = std::max<int64_t>(0, t - reach); r <= std::min(rows - 1, t + reach); ++r) {
        top = std::max(top, scores.as<float>()[r * scores.stride[0] + h]);
      }
      out.as<float>()[t * out.stride[0] + h] = top;
    }
  }
}

void OnCpu(const TopKPerHeadArgs& args, int threads) {
  const int64_t heads = args.scores.shape[1];
  if (args.count == 0) return;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t h = 0; h < heads; ++h) {
    std::vector<std::pair<float, int32_t>> rows;
    rows.reserve(args.eligible_end - args.eligible_begin);
    for (int64_t t = args.eligible_begin; t < args.eligible_end; ++t) {
      const float score = args.scores.as<float>()[t * args.scores.stride[0] + h];
      rows.emplace_back(std::isnan(score) ? -std::numeric_limits<float>::infinity() : score,
                        static_cast<int32_t>(t));
    }
    const auto better = [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    };
    if (args.count < static_cast<int64_t>(rows.size())) {
      std::nth_element(rows.begin(), rows.begin() + args.count, rows.end(), better);
    }
    int32_t* chosen = args.indices.as<int32_t>() + h * args.indices.stride[0];
    for (int64_t i = 0; i < args.count; ++i) chosen[i] = rows[i].second;
    std::sort(chosen, chosen + args.count);
  }
}

}  // namespace apb::kernels
