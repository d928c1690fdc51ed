#include "engine/model/wanted_tensor.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace apb::model {
namespace {

using kernels::TensorView;

WantedTensor Matrix(std::string name, int64_t out_features, int64_t in_features, TensorView* out) {
  const float deviation = 1.0f / std::sqrt(static_cast<float>(std::max<int64_t>(in_features, 1)));
  return {.name = std::move(name),
          .shape = {out_features, in_features},
          .out = out,
          .deviation = deviation};
}
WantedTensor Product(std::string name, int64_t out_features, int64_t in_features, TensorView* out) {
  WantedTensor wanted = Matrix(std::move(name), out_features, in_features, out);
  wanted.multiplies = true;
  return wanted;
}
WantedTensor Norm(std::string name, int64_t size, TensorView* out) {
  return {.name = std::move(name), .shape = {size}, .out = out, .deviation = 0.1f, .mean = 1.0f};
}
WantedTensor Bias(std::string name, int64_t size, TensorView* out) {
  return {.name = std::move(name), .shape = {size}, .out = out, .deviation = 0.3f};
}

Range Times(const Range& range, int64_t factor) {
  return {range.begin * factor, range.end * factor};
}

// Of fc1 a share has the columns of its heads (q, then k, then v), of fc2 the rows of its KV heads.
void AddRetainingHead(const ModelConfig& c, const std::string& attn, const PartShape& part,
                      const Share& share, int64_t width, LayerWeights& layer,
                      std::vector<WantedTensor>& all) {
  WantedTensor fc1 = Matrix(attn + "fc1.weight", width, c.qkv_width(), &layer.retaining_fc1);
  WantedTensor fc2 = Matrix(attn + "fc2.weight", c.kv_heads, width, &layer.retaining_fc2);
  if (share.count > 1) {
    const int64_t k_begin = c.query_heads * c.head_dim, v_begin = k_begin + c.kv_heads * c.head_dim;
    const Range kv = Times(part.kv_heads, c.head_dim);
    fc1.columns = {Times(part.query_heads, c.head_dim),
                   {k_begin + kv.begin, k_begin + kv.end},
                   {v_begin + kv.begin, v_begin + kv.end}};
    fc2.rows = part.kv_heads;
  }
  all.push_back(std::move(fc1));
  all.push_back(std::move(fc2));
}

}  // namespace

int64_t WantedTensor::row_count() const { return rows ? rows->length() : shape[0]; }

int64_t WantedTensor::column_count() const {
  if (shape.size() == 1) return 1;
  if (columns.empty()) return shape[1];
  int64_t count = 0;
  for (const Range& range : columns) count += range.length();
  return count;
}

TensorView ShareOf(const WantedTensor& wanted, const TensorView& whole) {
  if (wanted.absent) return {};
  TensorView share = whole;
  if (wanted.rows) share = share.Rows(wanted.rows->begin, wanted.rows->end);
  if (wanted.columns.size() == 1)
    share = share.Columns(wanted.columns[0].begin, wanted.columns[0].end);
  return share;
}

std::vector<WantedTensor> TensorsOutsideLayers(const ModelConfig& c, const PartShape& part,
                                               bool own_output, TensorView* embedding,
                                               TensorView* final_norm, TensorView* output) {
  const char* table = "model.embed_tokens.weight";
  std::vector<WantedTensor> all = {Matrix(table, c.vocab_size, c.hidden_size, embedding),
                                   Norm("model.norm.weight", c.hidden_size, final_norm)};
  all[0].deviation = 1.0f;
  if (c.tied_embeddings && !own_output) return all;
  all.push_back(
      Product(c.tied_embeddings ? table : "lm_head.weight", c.vocab_size, c.hidden_size, output));
  all.back().rows = part.vocabulary;
  return all;
}

std::vector<WantedTensor> TensorsOfLayer(const ModelConfig& c, int index, const PartShape& part,
                                         const Share& share, int64_t retaining_width,
                                         LayerWeights& layer) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const std::string attn = prefix + "self_attn.", mlp = prefix + "mlp.";
  const int64_t q = c.query_heads * c.head_dim, kv = c.kv_heads * c.head_dim, d = c.hidden_size;
  std::vector<WantedTensor> all = {
      Norm(prefix + "input_layernorm.weight", d, &layer.input_norm),
      Product(attn + "q_proj.weight", q, d, &layer.q_proj),
      Product(attn + "k_proj.weight", kv, d, &layer.k_proj),
      Product(attn + "v_proj.weight", kv, d, &layer.v_proj),
      Product(attn + "o_proj.weight", d, q, &layer.o_proj),
      Norm(prefix + "post_attention_layernorm.weight", d, &layer.post_norm),
      Product(mlp + "gate_proj.weight", c.mlp_size, d, &layer.gate_proj),
      Product(mlp + "up_proj.weight", c.mlp_size, d, &layer.up_proj),
      Product(mlp + "down_proj.weight", d, c.mlp_size, &layer.down_proj)};
  all[2].joins = all[3].joins = all[7].joins = true;  // q, k, v as one tensor; gate, up as one
  all[1].rows = Times(part.query_heads, c.head_dim);
  all[2].rows = all[3].rows = Times(part.kv_heads, c.head_dim);
  all[4].columns = {Times(part.query_heads, c.head_dim)};
  all[6].rows = all[7].rows = part.mlp;
  all[8].columns = {part.mlp};
  // The queries and keys of a random model are a little longer, so that attention is not flat.
  all[1].deviation *= 1.5f;
  all[2].deviation *= 1.5f;
  if (c.qkv_bias) {
    const size_t first = all.size();
    all.push_back(Bias(attn + "q_proj.bias", q, &layer.q_bias));
    all.push_back(Bias(attn + "k_proj.bias", kv, &layer.k_bias));
    all.push_back(Bias(attn + "v_proj.bias", kv, &layer.v_bias));
    for (size_t i = 0; i < 3; ++i) all[first + i].rows = all[1 + i].rows;
    all[first + 1].joins = all[first + 2].joins = true;
  }
  if (c.output_bias) {
    all.push_back(Bias(attn + "o_proj.bias", d, &layer.o_bias));
    all.back().absent = share.index != 0;  // so that the sum over the shares has the bias once
  }
  if (c.qk_norm) {
    all.push_back(Norm(attn + "q_norm.weight", c.head_dim, &layer.q_norm));
    all.push_back(Norm(attn + "k_norm.weight", c.head_dim, &layer.k_norm));
  }
  if (retaining_width != 0) AddRetainingHead(c, attn, part, share, retaining_width, layer, all);
  return all;
}

}  // namespace apb::model
