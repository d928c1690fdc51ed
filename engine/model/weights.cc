#include "engine/model/weights.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "engine/core/tensor.h"
#include "engine/model/safetensors.h"
#include "nlohmann/json.hpp"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace

struct Weights::Storage {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::map<std::string, const SafetensorsEntry*> tensors;
  std::vector<core::Tensor> owned;  // copies: of unaligned tensors, for devices, or random ones

  absl::Status Add(const std::string& path) {
    APB_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(path));
    for (const auto& [name, entry] : file->tensors()) {
      if (!tensors.emplace(name, &entry).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": tensor '", name, "' is also in another file"));
      }
    }
    files.push_back(std::move(file));
    return absl::OkStatus();
  }

  // The files of a checkpoint: one, or those that the index names.
  absl::Status AddCheckpoint(const std::string& directory) {
    const std::string index_path = directory + "/model.safetensors.index.json";
    std::ifstream in(index_path, std::ios::binary);
    if (!in) return Add(directory + "/model.safetensors");
    std::stringstream text;
    text << in.rdbuf();
    const nlohmann::json index = nlohmann::json::parse(text.str(), nullptr, false);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": has no weight_map"));
    }
    std::map<std::string, bool> names;
    for (const auto& [tensor, file] : index["weight_map"].items()) {
      if (!file.is_string())
        return absl::InvalidArgumentError(
            absl::StrCat(index_path, ": '", tensor, "' names no file"));
      const std::string name = file.get<std::string>();
      if (absl::StrContains(name, "/") || absl::StrContains(name, "..") || name.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat(index_path, ": file name '", name, "' leaves the checkpoint's directory"));
      }
      names[name] = true;
    }
    for (const auto& [name, unused] : names) APB_RETURN_IF_ERROR(Add(directory + "/" + name));
    return absl::OkStatus();
  }

  // A view of a tensor of exactly this type and shape (an extent of -1 takes any).
  absl::StatusOr<TensorView> Get(const std::string& name, DType dtype, std::vector<int64_t> shape,
                                 kernels::Backend& backend) {
    auto found = tensors.find(name);
    if (found == tensors.end())
      return absl::InvalidArgumentError(absl::StrCat("checkpoint: tensor '", name, "' is missing"));
    const SafetensorsEntry& entry = *found->second;
    const char* wanted = dtype == DType::kBF16 ? "BF16" : "F32";
    if (entry.dtype != wanted) {
      return absl::InvalidArgumentError(absl::StrCat("checkpoint: tensor '", name, "' is ",
                                                     entry.dtype, ", config.json says ", wanted));
    }
    bool fits = entry.shape.size() == shape.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) {
      if (shape[i] == -1) shape[i] = entry.shape[i];
      fits = shape[i] == entry.shape[i];
    }
    if (!fits) {
      return absl::InvalidArgumentError(absl::StrCat("checkpoint: tensor '", name, "' has shape ",
                                                     ShapeText(entry.shape),
                                                     ", config.json asks for ", ShapeText(shape)));
    }
    TensorView view = shape.size() == 1 ? TensorView::Contiguous(const_cast<std::byte*>(entry.data),
                                                                 dtype, {shape[0]})
                                        : TensorView::Contiguous(const_cast<std::byte*>(entry.data),
                                                                 dtype, {shape[0], shape[1]});
    const bool aligned = reinterpret_cast<uintptr_t>(entry.data) % SizeOf(dtype) == 0;
    if (aligned && backend.place() == kernels::Place::kHost) return view;
    APB_ASSIGN_OR_RETURN(core::Tensor copy,
                         shape.size() == 1
                             ? core::Tensor::Create(backend, dtype, {shape[0]})
                             : core::Tensor::Create(backend, dtype, {shape[0], shape[1]}));
    APB_ASSIGN_OR_RETURN(auto stream, backend.NewStream());
    backend.Copy(view, copy.view(), *stream);
    APB_RETURN_IF_ERROR(stream->Synchronize());
    owned.push_back(std::move(copy));
    return owned.back().view();
  }
};

Weights::Weights() : storage_(std::make_unique<Storage>()) {}
Weights::~Weights() = default;

absl::StatusOr<std::unique_ptr<Weights>> Weights::Load(const std::string& directory,
                                                       kernels::Backend& backend) {
  auto weights = std::unique_ptr<Weights>(new Weights());
  APB_ASSIGN_OR_RETURN(weights->config_, LoadModelConfig(directory));
  const ModelConfig& c = weights->config_;
  Storage& storage = *weights->storage_;
  APB_RETURN_IF_ERROR(storage.AddCheckpoint(directory));
  const std::string heads_path = directory + "/retaining_heads.safetensors";
  const bool has_heads = std::ifstream(heads_path).good();
  if (has_heads) APB_RETURN_IF_ERROR(storage.Add(heads_path));

  const auto get = [&](const std::string& name, std::vector<int64_t> shape,
                       TensorView& out) -> absl::Status {
    APB_ASSIGN_OR_RETURN(out, storage.Get(name, c.dtype, std::move(shape), backend));
    return absl::OkStatus();
  };
  const int64_t q = c.query_heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  APB_RETURN_IF_ERROR(
      get("model.embed_tokens.weight", {c.vocab_size, c.hidden_size}, weights->embedding_));
  APB_RETURN_IF_ERROR(get("model.norm.weight", {c.hidden_size}, weights->final_norm_));
  if (c.tied_embeddings) {
    weights->output_ = weights->embedding_;
  } else {
    APB_RETURN_IF_ERROR(get("lm_head.weight", {c.vocab_size, c.hidden_size}, weights->output_));
  }
  for (int i = 0; i < c.layers; ++i) {
    LayerWeights layer;
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    const std::string attn = prefix + "self_attn.";
    struct Wanted {
      std::string name;
      std::vector<int64_t> shape;
      TensorView* out;
    };
    std::vector<Wanted> wanted = {
        {prefix + "input_layernorm.weight", {c.hidden_size}, &layer.input_norm},
        {attn + "q_proj.weight", {q, c.hidden_size}, &layer.q_proj},
        {attn + "k_proj.weight", {kv, c.hidden_size}, &layer.k_proj},
        {attn + "v_proj.weight", {kv, c.hidden_size}, &layer.v_proj},
        {attn + "o_proj.weight", {c.hidden_size, q}, &layer.o_proj},
        {prefix + "post_attention_layernorm.weight", {c.hidden_size}, &layer.post_norm},
        {prefix + "mlp.gate_proj.weight", {c.mlp_size, c.hidden_size}, &layer.gate_proj},
        {prefix + "mlp.up_proj.weight", {c.mlp_size, c.hidden_size}, &layer.up_proj},
        {prefix + "mlp.down_proj.weight", {c.hidden_size, c.mlp_size}, &layer.down_proj}};
    if (c.qkv_bias) {
      wanted.push_back({attn + "q_proj.bias", {q}, &layer.q_bias});
      wanted.push_back({attn + "k_proj.bias", {kv}, &layer.k_bias});
      wanted.push_back({attn + "v_proj.bias", {kv}, &layer.v_bias});
    }
    if (c.output_bias) wanted.push_back({attn + "o_proj.bias", {c.hidden_size}, &layer.o_bias});
    if (c.qk_norm) {
      wanted.push_back({attn + "q_norm.weight", {c.head_dim}, &layer.q_norm});
      wanted.push_back({attn + "k_norm.weight", {c.head_dim}, &layer.k_norm});
    }
    if (has_heads) {
      wanted.push_back({attn + "fc1.weight", {-1, c.qkv_width()}, &layer.retaining_fc1});
      wanted.push_back({attn + "fc2.weight", {c.kv_heads, -1}, &layer.retaining_fc2});
    }
    for (Wanted& w : wanted) APB_RETURN_IF_ERROR(get(w.name, w.shape, *w.out));
    if (has_heads && layer.retaining_fc1.shape[0] != layer.retaining_fc2.shape[1]) {
      return absl::InvalidArgumentError(
          absl::StrCat(heads_path, ": layer ", i, ": fc1 gives ", layer.retaining_fc1.shape[0],
                       " features, fc2 takes ", layer.retaining_fc2.shape[1]));
    }
    weights->layers_.push_back(layer);
  }
  return weights;
}

absl::StatusOr<std::unique_ptr<Weights>> Weights::Random(const ModelConfig& config, uint64_t seed,
                                                         int64_t retaining_width,
                                                         kernels::Backend& backend) {
  auto weights = std::unique_ptr<Weights>(new Weights());
  weights->config_ = config;
  const ModelConfig& c = config;
  std::mt19937 rng(static_cast<uint32_t>(seed));
  APB_ASSIGN_OR_RETURN(auto stream, backend.NewStream());
  // A table of normal numbers read from a random place: fast enough for billions of weights.
  std::vector<float> normals(1 << 20);
  std::normal_distribution<float> normal;
  for (float& x : normals) x = normal(rng);
  const auto make = [&](std::vector<int64_t> shape, float deviation, float mean,
                        TensorView& out) -> absl::Status {
    const int64_t rows = shape[0], columns = shape.size() > 1 ? shape[1] : 1,
                  count = rows * columns;
    std::vector<std::byte> host(count * SizeOf(c.dtype));
    uint32_t at = static_cast<uint32_t>(rng());
    for (int64_t i = 0; i < count; ++i) {
      if (i % 4096 == 0) at = static_cast<uint32_t>(rng());
      const float x = mean + deviation * normals[(at + i) % normals.size()];
      if (c.dtype == DType::kF32) {
        std::memcpy(&host[i * 4], &x, 4);
      } else {
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        const uint16_t rounded = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        std::memcpy(&host[i * 2], &rounded, 2);
      }
    }
    const bool vector = shape.size() == 1;
    APB_ASSIGN_OR_RETURN(core::Tensor tensor,
                         vector ? core::Tensor::Create(backend, c.dtype, {rows})
                                : core::Tensor::Create(backend, c.dtype, {rows, columns}));
    backend.Copy(vector ? TensorView::Contiguous(host.data(), c.dtype, {rows})
                        : TensorView::Contiguous(host.data(), c.dtype, {rows, columns}),
                 tensor.view(), *stream);
    APB_RETURN_IF_ERROR(stream->Synchronize());
    out = tensor.view();
    weights->storage_->owned.push_back(std::move(tensor));
    return absl::OkStatus();
  };
  const int64_t q = c.query_heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const auto deviation = [](int64_t fan_in) {
    return 1.0f / std::sqrt(static_cast<float>(fan_in));
  };
  APB_RETURN_IF_ERROR(make({c.vocab_size, c.hidden_size}, 1.0f, 0, weights->embedding_));
  APB_RETURN_IF_ERROR(make({c.hidden_size}, 0.1f, 1, weights->final_norm_));
  weights->output_ = weights->embedding_;
  if (!c.tied_embeddings)
    APB_RETURN_IF_ERROR(
        make({c.vocab_size, c.hidden_size}, deviation(c.hidden_size), 0, weights->output_));
  for (int i = 0; i < c.layers; ++i) {
    LayerWeights l;
    APB_RETURN_IF_ERROR(make({c.hidden_size}, 0.1f, 1, l.input_norm));
    APB_RETURN_IF_ERROR(make({q, c.hidden_size}, 1.5f * deviation(c.hidden_size), 0, l.q_proj));
    APB_RETURN_IF_ERROR(make({kv, c.hidden_size}, 1.5f * deviation(c.hidden_size), 0, l.k_proj));
    APB_RETURN_IF_ERROR(make({kv, c.hidden_size}, deviation(c.hidden_size), 0, l.v_proj));
    APB_RETURN_IF_ERROR(make({c.hidden_size, q}, deviation(q), 0, l.o_proj));
    APB_RETURN_IF_ERROR(make({c.hidden_size}, 0.1f, 1, l.post_norm));
    APB_RETURN_IF_ERROR(
        make({c.mlp_size, c.hidden_size}, deviation(c.hidden_size), 0, l.gate_proj));
    APB_RETURN_IF_ERROR(make({c.mlp_size, c.hidden_size}, deviation(c.hidden_size), 0, l.up_proj));
    APB_RETURN_IF_ERROR(make({c.hidden_size, c.mlp_size}, deviation(c.mlp_size), 0, l.down_proj));
    if (c.qkv_bias) {
      APB_RETURN_IF_ERROR(make({q}, 0.3f, 0, l.q_bias));
      APB_RETURN_IF_ERROR(make({kv}, 0.3f, 0, l.k_bias));
      APB_RETURN_IF_ERROR(make({kv}, 0.3f, 0, l.v_bias));
    }
    if (c.output_bias) APB_RETURN_IF_ERROR(make({c.hidden_size}, 0.3f, 0, l.o_bias));
    if (c.qk_norm) {
      APB_RETURN_IF_ERROR(make({c.head_dim}, 0.1f, 1, l.q_norm));
      APB_RETURN_IF_ERROR(make({c.head_dim}, 0.1f, 1, l.k_norm));
    }
    if (retaining_width > 0) {
      APB_RETURN_IF_ERROR(
          make({retaining_width, c.qkv_width()}, deviation(c.qkv_width()), 0, l.retaining_fc1));
      APB_RETURN_IF_ERROR(
          make({c.kv_heads, retaining_width}, deviation(retaining_width), 0, l.retaining_fc2));
    }
    weights->layers_.push_back(l);
  }
  return weights;
}

}  // namespace apb::model
