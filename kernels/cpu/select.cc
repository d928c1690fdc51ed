#include "kernels/cpu/select.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

namespace apb::kernels {
namespace {
std::byte* RowAt(const TensorView& view, int64_t row, int64_t second = 0) {
  return static_cast<std::byte*>(view.data) + (row * view.stride[0] + second * view.stride[1]) *
                                                  static_cast<int64_t>(SizeOf(view.dtype));
}

// Where head `head` of a cache slot lies.
std::byte* SlotAt(const TensorView& cache, int64_t slot, int64_t head) {
  const int64_t block = slot / cache.shape[2], offset = slot % cache.shape[2];
  return static_cast<std::byte*>(cache.data) +
         (block * cache.stride[0] + head * cache.stride[1] + offset * cache.stride[2]) *
             static_cast<int64_t>(SizeOf(cache.dtype));
}
}  // namespace

void EmbeddingOnCpu(const TensorView& table, const TensorView& ids, const TensorView& out,
                    int threads) {
  const size_t bytes = table.shape[1] * SizeOf(table.dtype);
#pragma omp parallel for schedule(static) num_threads(threads) if (ids.shape[0] > 64)
  for (int64_t t = 0; t < ids.shape[0]; ++t) {
    std::memcpy(RowAt(out, t), RowAt(table, ids.as<int32_t>()[t]), bytes);
  }
}

void AppendToCacheOnCpu(const TensorView& k, const TensorView& v, const TensorView& slots,
                        const TensorView& k_cache, const TensorView& v_cache, int threads) {
  const int64_t heads = k.shape[1];
  const size_t bytes = k.shape[2] * SizeOf(k.dtype);
#pragma omp parallel for schedule(static) num_threads(threads) if (k.shape[0] > 64)
  for (int64_t t = 0; t < k.shape[0]; ++t) {
    const int64_t slot = slots.as<int64_t>()[t];
    if (slot < 0) continue;
    for (int64_t h = 0; h < heads; ++h) {
      std::memcpy(SlotAt(k_cache, slot, h), RowAt(k, t, h), bytes);
      std::memcpy(SlotAt(v_cache, slot, h), RowAt(v, t, h), bytes);
    }
  }
}

void ReadFromCacheOnCpu(const TensorView& slots, const TensorView& k_cache,
                        const TensorView& v_cache, const TensorView& k, const TensorView& v,
                        int threads) {
  const int64_t heads = k.shape[1];
  const size_t bytes = k.shape[2] * SizeOf(k.dtype);
#pragma omp parallel for schedule(static) num_threads(threads) if (k.shape[0] > 64)
  for (int64_t t = 0; t < k.shape[0]; ++t) {
    const int64_t slot = slots.as<int64_t>()[t];
    for (int64_t h = 0; h < heads; ++h) {
      std::memcpy(RowAt(k, t, h), SlotAt(k_cache, slot, h), bytes);
      std::memcpy(RowAt(v, t, h), SlotAt(v_cache, slot, h), bytes);
    }
  }
}

void MaxPoolRowsOnCpu(const TensorView& scores, int window, const TensorView& out, int threads) {
  const int64_t rows = scores.shape[0], heads = scores.shape[1], reach = window / 2;
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

void TopKPerHeadOnCpu(const TopKPerHeadArgs& args, int threads) {
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

void GatherRowsPerHeadOnCpu(const TensorView& x, const TensorView& indices, const TensorView& out,
                            int threads) {
  const size_t bytes = x.shape[2] * SizeOf(x.dtype);
  const int64_t heads = x.shape[1], count = indices.shape[1];
#pragma omp parallel for schedule(static) num_threads(threads) if (count > 64)
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t h = 0; h < heads; ++h) {
      std::memcpy(RowAt(out, i, h), RowAt(x, indices.as<int32_t>()[h * indices.stride[0] + i], h),
                  bytes);
    }
  }
}

void CopyOnCpu(const TensorView& source, const TensorView& target, int threads) {
  // Rows of all leading dimensions; the last one is contiguous.
  const int last = source.rank - 1;
  if (source.numel() == 0) return;
  const int64_t rows = source.numel() / source.shape[last];
  const size_t size = SizeOf(source.dtype), bytes = source.shape[last] * size;
#pragma omp parallel for schedule(static) num_threads(threads) if (source.numel() > 65536)
  for (int64_t r = 0; r < rows; ++r) {
    int64_t rest = r, from = 0, to = 0;
    for (int d = last - 1; d >= 0; --d) {
      const int64_t i = rest % source.shape[d];
      rest /= source.shape[d];
      from += i * source.stride[d];
      to += i * target.stride[d];
    }
    std::memcpy(static_cast<std::byte*>(target.data) + to * static_cast<int64_t>(size),
                static_cast<const std::byte*>(source.data) + from * static_cast<int64_t>(size),
                bytes);
  }
}

}  // namespace apb::kernels
