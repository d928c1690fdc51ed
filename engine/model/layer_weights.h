// The weights of one layer as views, and parts of them: whole heads, columns of the MLP, rows of
// the vocabulary. A tensor parallel rank has one part in all calls. Ranks that run the same rows
// (decode) each take a part of that part for a step. A part consists of views into the same memory;
// no weight is copied.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernels/tensor_view.h"

namespace apb::model {

struct LayerWeights {
  kernels::TensorView input_norm;              // [D]
  kernels::TensorView q_proj, k_proj, v_proj;  // [n_q d, D], [n_kv d, D], [n_kv d, D]
  kernels::TensorView q_bias, k_bias, v_bias;  // absent without qkv_bias
  kernels::TensorView q_norm, k_norm;          // [d], absent without qk_norm
  kernels::TensorView o_proj, o_bias;          // [D, n_q d], [D]; the bias is mostly absent
  kernels::TensorView post_norm;               // [D]
  kernels::TensorView gate_proj, up_proj;      // [F, D]
  kernels::TensorView down_proj;               // [D, F]
  // The same memory as one tensor, so that one product computes all parts: q, k, v
  // [(n_q + 2 n_kv) d, D] with the bias [(n_q + 2 n_kv) d], and gate, up [2 F, D]. Each is absent
  // if its parts do not follow one another in memory.
  kernels::TensorView qkv_proj, qkv_bias, gate_up_proj;
  // Retaining head (docs/algorithms.md): fc1 [d_R, qkv_width], fc2 [n_kv, d_R]; absent if the model
  // has none. A tensor parallel share has the columns of its heads in fc1 (q, then k, then v) and
  // the rows of its KV heads in fc2.
  kernels::TensorView retaining_fc1, retaining_fc2;
};

// Dense tensors that follow one another in memory, as one tensor with the rows of all of them.
// Absent if they do not.
inline kernels::TensorView Joined(std::initializer_list<kernels::TensorView> parts) {
  kernels::TensorView all;
  for (const kernels::TensorView& part : parts) {
    const bool dense = part.rank == 1 || part.stride[0] == part.shape[1];
    if (!part.present() || !dense) return {};
    if (!all.present()) {
      all = part;
      continue;
    }
    const kernels::TensorView behind = all.Rows(all.rows(), all.rows());
    if (part.data != behind.data || part.dtype != all.dtype || part.rank != all.rank ||
        part.stride[0] != all.stride[0])
      return {};
    all.shape[0] += part.rows();
  }
  return all;
}

// Share `index` of `count` shares.
struct Share {
  int index = 0;
  int count = 1;
};

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t length() const { return end - begin; }
};

// The share's range of n units; each unit is in exactly one share. Borders are multiples of `step`.
// Shares may be empty.
inline Range PartOf(int64_t n, Share share, int64_t step = 1) {
  const int64_t steps = n / step;
  const auto border = [&](int64_t i) {
    return i == share.count ? n : steps * i / share.count * step;
  };
  return {border(share.index), border(share.index + 1)};
}

// The heads, MLP columns and rows of the vocabulary of a part.
struct PartShape {
  Range query_heads, kv_heads, mlp, vocabulary;
  // The share's part of this part, counted from this part's begin.
  PartShape Part(Share share) const {
    // Matrix products are fastest if their inner dimension is a multiple of 64.
    const int64_t step = mlp.length() >= int64_t{64} * share.count ? 64 : 1;
    return {.query_heads = PartOf(query_heads.length(), share),
            .kv_heads = PartOf(kv_heads.length(), share),
            .mlp = PartOf(mlp.length(), share, step),
            .vocabulary = PartOf(vocabulary.length(), share)};
  }
};

// The views of a part of a layer. The outputs of all parts add up to the whole layer's output, so
// only the `first` part has the output bias. The retaining head is left out, because its columns
// are not one range. Joined tensors are present if the part's tensors still follow one another.
inline LayerWeights PartOf(const LayerWeights& layer, const PartShape& part, int64_t head_dim,
                           bool first) {
  const Range q{part.query_heads.begin * head_dim, part.query_heads.end * head_dim};
  const Range kv{part.kv_heads.begin * head_dim, part.kv_heads.end * head_dim};
  const auto rows = [](const kernels::TensorView& view, const Range& range) {
    return view.present() ? view.Rows(range.begin, range.end) : view;
  };
  LayerWeights out = layer;
  out.q_proj = rows(layer.q_proj, q);
  out.k_proj = rows(layer.k_proj, kv);
  out.v_proj = rows(layer.v_proj, kv);
  out.q_bias = rows(layer.q_bias, q);
  out.k_bias = rows(layer.k_bias, kv);
  out.v_bias = rows(layer.v_bias, kv);
  out.o_proj = layer.o_proj.Columns(q.begin, q.end);
  if (!first) out.o_bias = {};
  out.gate_proj = rows(layer.gate_proj, part.mlp);
  out.up_proj = rows(layer.up_proj, part.mlp);
  out.down_proj = layer.down_proj.Columns(part.mlp.begin, part.mlp.end);
  out.retaining_fc1 = out.retaining_fc2 = {};
  out.qkv_proj = Joined({out.q_proj, out.k_proj, out.v_proj});
  out.qkv_bias = Joined({out.q_bias, out.k_bias, out.v_bias});
  out.gate_up_proj = Joined({out.gate_proj, out.up_proj});
  return out;
}

}  // namespace apb::model
