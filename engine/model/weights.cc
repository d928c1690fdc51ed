#include "engine/model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "engine/core/tensor.h"
#include "engine/model/json_file.h"
#include "engine/model/safetensors.h"

namespace apb::model {

// One tensor of the model: its name in a checkpoint, its shape (an extent of -1 takes any), where
// its view goes, and what numbers a random model has there.
struct WantedTensor {
  std::string name;
  std::vector<int64_t> shape;
  kernels::TensorView* out;
  float deviation = 0;
  float mean = 0;
};

namespace {

using kernels::DType;
using kernels::TensorView;

constexpr size_t kMaxIndexBytes = 16 << 20;
constexpr int64_t kMaxRetainingWidth = 1 << 16;

WantedTensor Matrix(std::string name, int64_t out_features, int64_t in_features, TensorView* out) {
  const float deviation = 1.0f / std::sqrt(static_cast<float>(std::max<int64_t>(in_features, 1)));
  return {std::move(name), {out_features, in_features}, out, deviation, 0.0f};
}
WantedTensor Norm(std::string name, int64_t size, TensorView* out) {
  return {std::move(name), {size}, out, 0.1f, 1.0f};
}
WantedTensor Bias(std::string name, int64_t size, TensorView* out) {
  return {std::move(name), {size}, out, 0.3f, 0.0f};
}

std::vector<WantedTensor> TensorsOfLayer(const ModelConfig& c, int index, LayerWeights& layer) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const std::string attn = prefix + "self_attn.", mlp = prefix + "mlp.";
  const int64_t q = c.query_heads * c.head_dim, kv = c.kv_heads * c.head_dim, d = c.hidden_size;
  std::vector<WantedTensor> all = {
      Norm(prefix + "input_layernorm.weight", d, &layer.input_norm),
      Matrix(attn + "q_proj.weight", q, d, &layer.q_proj),
      Matrix(attn + "k_proj.weight", kv, d, &layer.k_proj),
      Matrix(attn + "v_proj.weight", kv, d, &layer.v_proj),
      Matrix(attn + "o_proj.weight", d, q, &layer.o_proj),
      Norm(prefix + "post_attention_layernorm.weight", d, &layer.post_norm),
      Matrix(mlp + "gate_proj.weight", c.mlp_size, d, &layer.gate_proj),
      Matrix(mlp + "up_proj.weight", c.mlp_size, d, &layer.up_proj),
      Matrix(mlp + "down_proj.weight", d, c.mlp_size, &layer.down_proj)};
  // Random queries and keys are a little longer, so that attention is not flat.
  all[1].deviation *= 1.5f;
  all[2].deviation *= 1.5f;
  if (c.qkv_bias) {
    all.push_back(Bias(attn + "q_proj.bias", q, &layer.q_bias));
    all.push_back(Bias(attn + "k_proj.bias", kv, &layer.k_bias));
    all.push_back(Bias(attn + "v_proj.bias", kv, &layer.v_bias));
  }
  if (c.output_bias) all.push_back(Bias(attn + "o_proj.bias", d, &layer.o_bias));
  if (c.qk_norm) {
    all.push_back(Norm(attn + "q_norm.weight", c.head_dim, &layer.q_norm));
    all.push_back(Norm(attn + "k_norm.weight", c.head_dim, &layer.k_norm));
  }
  return all;
}

// A retaining head of `width` features, -1 = as the file has it.
std::vector<WantedTensor> TensorsOfRetainingHead(const ModelConfig& c, int index, int64_t width,
                                                 LayerWeights& layer) {
  const std::string attn = absl::StrCat("model.layers.", index, ".self_attn.");
  return {Matrix(attn + "fc1.weight", width, c.qkv_width(), &layer.retaining_fc1),
          Matrix(attn + "fc2.weight", c.kv_heads, width, &layer.retaining_fc2)};
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

TensorView ViewOf(void* data, DType dtype, const std::vector<int64_t>& shape) {
  return shape.size() == 1 ? TensorView::Contiguous(data, dtype, {shape[0]})
                           : TensorView::Contiguous(data, dtype, {shape[0], shape[1]});
}

// The shard of each tensor, as the index says. Names stay inside the checkpoint's directory.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  APB_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxIndexBytes));
  APB_ASSIGN_OR_RETURN(const nlohmann::json index, ParseJsonObject(text, path));
  if (!index.contains("weight_map") || !index["weight_map"].is_object())
    return absl::InvalidArgumentError(absl::StrCat(path, ": has no weight_map"));
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string())
      return absl::InvalidArgumentError(absl::StrCat(path, ": '", tensor, "' names no file"));
    const std::string name = file.get<std::string>();
    if (name.empty() || absl::StrContains(name, "/") || absl::StrContains(name, "..") ||
        name.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": file name '", name, "' leaves the checkpoint's directory"));
    }
    shards[tensor] = name;
  }
  return shards;
}

// Normal numbers of a fixed seed: a table read from random places, fast enough for billions.
class RandomFill {
 public:
  explicit RandomFill(uint64_t seed) : rng_(static_cast<uint32_t>(seed)), normals_(1 << 20) {
    std::normal_distribution<float> normal;
    for (float& x : normals_) x = normal(rng_);
  }
  std::vector<std::byte> Make(DType dtype, int64_t count, float deviation, float mean) {
    constexpr int64_t kRun = 4096;
    std::vector<std::byte> bytes(count * SizeOf(dtype));
    uint32_t at = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (i % kRun == 0) at = static_cast<uint32_t>(rng_());
      const float x = mean + deviation * normals_[(at + i) % normals_.size()];
      if (dtype == DType::kF32) {
        std::memcpy(&bytes[i * 4], &x, 4);
      } else {
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        const uint16_t rounded = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        std::memcpy(&bytes[i * 2], &rounded, 2);
      }
    }
    return bytes;
  }

 private:
  std::mt19937 rng_;
  std::vector<float> normals_;
};

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

  // One file, or those that the index names.
  absl::Status AddCheckpoint(const std::string& directory) {
    const absl::Status single = Add(directory + "/model.safetensors");
    if (!absl::IsNotFound(single)) return single;
    const std::string index_path = directory + "/model.safetensors.index.json";
    auto shards = ReadIndex(index_path);
    if (absl::IsNotFound(shards.status())) {
      return absl::NotFoundError(absl::StrCat(
          directory,
          ": has neither model.safetensors nor model.safetensors.index.json (weights in "
          "another format have to be converted to safetensors)"));
    }
    APB_RETURN_IF_ERROR(shards.status());
    std::set<std::string> names;
    for (const auto& [tensor, file] : *shards) names.insert(file);
    for (const std::string& name : names) APB_RETURN_IF_ERROR(Add(directory + "/" + name));
    for (const auto& [tensor, file] : *shards) {
      if (tensors.count(tensor) == 0) {
        return absl::InvalidArgumentError(absl::StrCat(index_path, ": tensor '", tensor,
                                                       "' is not in ", file, " (damaged copy?)"));
      }
    }
    return absl::OkStatus();
  }

  // Heads belong to one model: a file with more or fewer layers is of another one.
  absl::StatusOr<bool> AddRetainingHeads(const std::string& path, const ModelConfig& config) {
    const absl::Status added = Add(path);
    if (absl::IsNotFound(added)) return false;
    APB_RETURN_IF_ERROR(added);
    const SafetensorsFile& file = *files.back();
    if (file.tensors().size() != 2 * static_cast<size_t>(config.layers)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": has ", file.tensors().size(), " tensors, fc1 and fc2 of the model's ",
          config.layers, " layers are ", 2 * config.layers));
    }
    auto activation = file.metadata().find("activation");
    if (activation != file.metadata().end() && activation->second != "silu") {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": activation '", activation->second, "' is not supported (silu is)"));
    }
    return true;
  }

  // A view, into the mapped file, of a tensor of exactly this type and shape.
  absl::Status Get(const WantedTensor& wanted, DType dtype) {
    auto found = tensors.find(wanted.name);
    if (found == tensors.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("checkpoint: tensor '", wanted.name, "' is missing"));
    }
    const SafetensorsEntry& entry = *found->second;
    const char* type = dtype == DType::kBF16 ? "BF16" : "F32";
    if (entry.dtype != type) {
      return absl::InvalidArgumentError(absl::StrCat("checkpoint: tensor '", wanted.name, "' is ",
                                                     entry.dtype, ", config.json says ", type));
    }
    bool fits = entry.shape.size() == wanted.shape.size();
    for (size_t i = 0; fits && i < entry.shape.size(); ++i)
      fits = wanted.shape[i] == -1 || wanted.shape[i] == entry.shape[i];
    if (!fits) {
      return absl::InvalidArgumentError(
          absl::StrCat("checkpoint: tensor '", wanted.name, "' has shape ", ShapeText(entry.shape),
                       ", config.json asks for ", ShapeText(wanted.shape)));
    }
    *wanted.out = ViewOf(const_cast<std::byte*>(entry.data), dtype, entry.shape);
    return absl::OkStatus();
  }

  // Replaces a view into the file by a copy where the backend cannot compute on the file.
  absl::Status MoveTo(kernels::Backend& backend, TensorView* view) {
    if (!view->present()) return absl::OkStatus();  // a bias of another share
    const bool aligned = reinterpret_cast<uintptr_t>(view->data) % SizeOf(view->dtype) == 0;
    if (aligned && backend.place() == kernels::Place::kHost) return absl::OkStatus();
    APB_ASSIGN_OR_RETURN(core::Tensor copy, core::Tensor::CopyOf(backend, *view));
    *view = copy.view();
    owned.push_back(std::move(copy));
    return absl::OkStatus();
  }
};

std::vector<WantedTensor> Weights::Tensors(int64_t retaining_width) {
  const ModelConfig& c = config_;
  std::vector<WantedTensor> all = {
      Matrix("model.embed_tokens.weight", c.vocab_size, c.hidden_size, &embedding_),
      Norm("model.norm.weight", c.hidden_size, &final_norm_)};
  all[0].deviation = 1.0f;
  if (!c.tied_embeddings)
    all.push_back(Matrix("lm_head.weight", c.vocab_size, c.hidden_size, &output_));
  layers_.resize(c.layers);
  for (int i = 0; i < c.layers; ++i) {
    for (WantedTensor& w : TensorsOfLayer(c, i, layers_[i])) all.push_back(std::move(w));
    if (retaining_width == 0) continue;
    for (WantedTensor& w : TensorsOfRetainingHead(c, i, retaining_width, layers_[i]))
      all.push_back(std::move(w));
  }
  return all;
}

absl::Status Weights::Take(Share tensor, kernels::Backend& backend) {
  const ModelConfig& c = config_;
  const PartShape whole = {.query_heads = {0, c.query_heads},
                           .kv_heads = {0, c.kv_heads},
                           .mlp = {0, c.mlp_size},
                           .vocabulary = {0, c.vocab_size}};
  share_ = tensor;
  shape_ = whole.Part(tensor);
  if (tensor.count == 1) return absl::OkStatus();
  if (tensor.count < 1 || c.kv_heads % tensor.count != 0) {
    return absl::InvalidArgumentError(absl::StrCat("tensor parallel over ", tensor.count,
                                                   " ranks: the model's ", c.kv_heads,
                                                   " KV heads do not divide among them"));
  }
  const Range q{shape_.query_heads.begin * c.head_dim, shape_.query_heads.end * c.head_dim};
  const Range kv{shape_.kv_heads.begin * c.head_dim, shape_.kv_heads.end * c.head_dim};
  for (LayerWeights& layer : layers_) {
    const TensorView fc1 = layer.retaining_fc1, fc2 = layer.retaining_fc2;
    layer = PartOf(layer, shape_, c.head_dim, tensor.index == 0);
    if (!fc1.present()) continue;
    // Its columns are three ranges: the one weight that is copied.
    const int64_t k_begin = c.query_heads * c.head_dim, v_begin = k_begin + c.kv_heads * c.head_dim;
    APB_ASSIGN_OR_RETURN(core::Tensor columns,
                         core::Tensor::Create(backend, fc1.dtype, {fc1.shape[0], qkv_width()}));
    APB_ASSIGN_OR_RETURN(auto stream, backend.NewStream());
    int64_t at = 0;
    for (const Range& from : {q, Range{k_begin + kv.begin, k_begin + kv.end},
                              Range{v_begin + kv.begin, v_begin + kv.end}}) {
      backend.Copy(fc1.Columns(from.begin, from.end),
                   columns.view().Columns(at, at + from.length()), *stream);
      at += from.length();
    }
    APB_RETURN_IF_ERROR(stream->Synchronize());
    layer.retaining_fc1 = columns.view();
    layer.retaining_fc2 = fc2.Rows(shape_.kv_heads.begin, shape_.kv_heads.end);
    storage_->owned.push_back(std::move(columns));
  }
  output_ = output_.Rows(shape_.vocabulary.begin, shape_.vocabulary.end);
  return absl::OkStatus();
}

Weights::Weights() : storage_(std::make_unique<Storage>()) {}
Weights::~Weights() = default;

absl::StatusOr<std::unique_ptr<Weights>> Weights::Load(const std::string& directory,
                                                       kernels::Backend& backend, Share tensor) {
  auto weights = std::unique_ptr<Weights>(new Weights());
  APB_ASSIGN_OR_RETURN(weights->config_, LoadModelConfig(directory));
  const ModelConfig& c = weights->config_;
  Storage& storage = *weights->storage_;
  APB_RETURN_IF_ERROR(storage.AddCheckpoint(directory));
  const std::string heads_path = directory + "/retaining_heads.safetensors";
  APB_ASSIGN_OR_RETURN(const bool has_heads, storage.AddRetainingHeads(heads_path, c));

  const std::vector<WantedTensor> wanted = weights->Tensors(has_heads ? -1 : 0);
  for (const WantedTensor& w : wanted) APB_RETURN_IF_ERROR(storage.Get(w, c.dtype));
  for (int i = 0; has_heads && i < c.layers; ++i) {
    const int64_t width = weights->layers_[i].retaining_fc1.shape[0];
    const int64_t takes = weights->layers_[i].retaining_fc2.shape[1];
    if (width != takes || width < 1 || width > kMaxRetainingWidth) {
      return absl::InvalidArgumentError(
          absl::StrCat(heads_path, ": layer ", i, ": fc1 gives ", width, " features, fc2 takes ",
                       takes, "; both must be the same, from 1 to ", kMaxRetainingWidth));
    }
  }
  if (c.tied_embeddings) weights->output_ = weights->embedding_;
  APB_RETURN_IF_ERROR(weights->Take(tensor, backend));
  for (const WantedTensor& w : wanted) APB_RETURN_IF_ERROR(storage.MoveTo(backend, w.out));
  if (c.tied_embeddings) {
    const Range& rows = weights->shape_.vocabulary;
    weights->output_ = weights->embedding_.Rows(rows.begin, rows.end);
  }
  return weights;
}

absl::StatusOr<std::unique_ptr<Weights>> Weights::Random(const ModelConfig& config, uint64_t seed,
                                                         int64_t retaining_width,
                                                         kernels::Backend& backend, Share tensor) {
  auto weights = std::unique_ptr<Weights>(new Weights());
  weights->config_ = config;
  const ModelConfig& c = config;
  RandomFill random(seed);
  for (const WantedTensor& w : weights->Tensors(retaining_width)) {
    const int64_t count = w.shape[0] * (w.shape.size() > 1 ? w.shape[1] : 1);
    std::vector<std::byte> bytes = random.Make(c.dtype, count, w.deviation, w.mean);
    APB_ASSIGN_OR_RETURN(core::Tensor tensor,
                         core::Tensor::CopyOf(backend, ViewOf(bytes.data(), c.dtype, w.shape)));
    *w.out = tensor.view();
    weights->storage_->owned.push_back(std::move(tensor));
  }
  if (c.tied_embeddings) weights->output_ = weights->embedding_;
  APB_RETURN_IF_ERROR(weights->Take(tensor, backend));
  return weights;
}

}  // namespace apb::model
