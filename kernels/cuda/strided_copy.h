// Cuts a strided copy into few two-dimensional ones: pure arithmetic, tested without a device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels/tensor_view.h"

namespace apb::kernels::cuda {

// `rows` pieces of `width` bytes; the pitches are the distances of pieces in bytes.
struct CopyRun {
  std::byte* target;
  const std::byte* source;
  size_t target_pitch, source_pitch, width, rows;
};

// The copies for views of the same shape and type. Dimensions that are dense in both views become
// one.
inline std::vector<CopyRun> CopyRuns(const TensorView& source, const TensorView& target) {
  if (source.numel() == 0) return {};
  struct Dimension {
    int64_t extent, from, to;  // strides in bytes
  };
  const int64_t size = static_cast<int64_t>(SizeOf(source.dtype));
  std::vector<Dimension> dims = {{size, 1, 1}};  // innermost first: the bytes of an element
  for (int i = source.rank - 1; i >= 0; --i) {
    const Dimension next{source.shape[i], source.stride[i] * size, target.stride[i] * size};
    if (next.extent == 1) continue;
    Dimension& inner = dims.back();
    if (next.from == inner.from * inner.extent && next.to == inner.to * inner.extent) {
      inner.extent *= next.extent;
    } else {
      dims.push_back(next);
    }
  }
  while (dims.size() < 2) dims.push_back({1, dims[0].extent, dims[0].extent});
  int64_t outer = 1;
  for (size_t i = 2; i < dims.size(); ++i) outer *= dims[i].extent;
  std::vector<CopyRun> runs;
  for (int64_t index = 0; index < outer; ++index) {
    int64_t from = 0, to = 0, rest = index;
    for (size_t i = 2; i < dims.size(); ++i) {
      from += rest % dims[i].extent * dims[i].from;
      to += rest % dims[i].extent * dims[i].to;
      rest /= dims[i].extent;
    }
    const auto pitch = [&](int64_t stride) {
      return static_cast<size_t>(std::max(stride, dims[0].extent));
    };
    runs.push_back({static_cast<std::byte*>(target.data) + to,
                    static_cast<const std::byte*>(source.data) + from, pitch(dims[1].to),
                    pitch(dims[1].from), static_cast<size_t>(dims[0].extent),
                    static_cast<size_t>(dims[1].extent)});
  }
  return runs;
}

}  // namespace apb::kernels::cuda
