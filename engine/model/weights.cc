#include "engine/model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/model/checkpoint.h"
#include "engine/model/float_convert.h"

namespace apb::model {

// One tensor of the model: its name in a checkpoint, its shape (an extent of -1 takes any), where
// its view goes, and what numbers a random model has there.
struct WantedTensor {
  std::string name;
  std::vector<int64_t> shape;
  kernels::TensorView* out;
  float deviation = 0;
  float mean = 0;
  bool joins = false;  // copied right behind the one before, so that one product computes both
  std::vector<Range> columns;             // those that a share has; empty = all
  const SafetensorsFile* file = nullptr;  // that `out` shows a part of; null: memory that goes away
};

namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int64_t kMaxRetainingWidth = 1 << 16;
constexpr size_t kAlignment = 256;  // of a tensor in memory of the backend

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
  all[2].joins = all[3].joins = all[7].joins = true;  // k and v behind q, up behind gate
  // Random queries and keys are a little longer, so that attention is not flat.
  all[1].deviation *= 1.5f;
  all[2].deviation *= 1.5f;
  if (c.qkv_bias) {
    all.push_back(Bias(attn + "q_proj.bias", q, &layer.q_bias));
    all.push_back(Bias(attn + "k_proj.bias", kv, &layer.k_bias));
    all.push_back(Bias(attn + "v_proj.bias", kv, &layer.v_bias));
    all[all.size() - 2].joins = all.back().joins = true;
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

// The columns of a retaining head's fc1 that a share has, in its order.
std::vector<Range> ColumnsOfShare(const ModelConfig& c, const PartShape& part) {
  const int64_t d = c.head_dim, k_begin = c.query_heads * d, v_begin = k_begin + c.kv_heads * d;
  const Range kv{part.kv_heads.begin * d, part.kv_heads.end * d};
  return {{part.query_heads.begin * d, part.query_heads.end * d},
          {k_begin + kv.begin, k_begin + kv.end},
          {v_begin + kv.begin, v_begin + kv.end}};
}

// fc1 and fc2 of a file have one width.
absl::Status CheckRetainingHead(const LayerWeights& layer, int index) {
  const int64_t width = layer.retaining_fc1.shape[0], takes = layer.retaining_fc2.shape[1];
  if (width == takes && width >= 1 && width <= kMaxRetainingWidth) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "retaining_heads.safetensors: layer ", index, ": fc1 gives ", width, " features, fc2 takes ",
      takes, "; both must be the same, from 1 to ", kMaxRetainingWidth));
}

TensorView ViewOf(void* data, DType dtype, const std::vector<int64_t>& shape) {
  return shape.size() == 1 ? TensorView::Contiguous(data, dtype, {shape[0]})
                           : TensorView::Contiguous(data, dtype, {shape[0], shape[1]});
}

int64_t LengthOf(const std::vector<Range>& ranges) {
  int64_t length = 0;
  for (const Range& range : ranges) length += range.length();
  return length;
}

// The type to compute in.
absl::StatusOr<DType> ChooseType(DType of_checkpoint, const kernels::Backend& backend,
                                 std::optional<DType> wanted) {
  const bool host = backend.place() == kernels::Place::kHost;
  if (host && wanted == DType::kF16) {
    return absl::InvalidArgumentError(
        "float16: the CPU does not compute in it; choose bfloat16 or float32 (auto converts "
        "float16 checkpoints to bfloat16)");
  }
  if (wanted) return *wanted;
  return host && of_checkpoint == DType::kF16 ? DType::kBF16 : of_checkpoint;
}

// Normal numbers of a fixed seed: runs of a table from random places of it, copied as they are to be
// stored, so that billions take seconds.
class RandomFill {
 public:
  RandomFill(uint64_t seed, DType dtype)
      : dtype_(dtype), rng_(static_cast<uint32_t>(seed)), normals_(kTable + kRun) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kTable; ++i) normals_[i] = normal(rng_);
    std::copy_n(normals_.begin(), kRun, normals_.begin() + kTable);  // a run goes over the end
  }
  void Make(int64_t count, float deviation, float mean, std::vector<std::byte>& bytes) {
    const int64_t size = static_cast<int64_t>(SizeOf(dtype_));
    const std::vector<std::byte>& table = TableOf(deviation, mean);
    bytes.resize(count * size);
    for (int64_t begin = 0; begin < count; begin += kRun) {
      const int64_t length = std::min(kRun, count - begin);
      const int64_t at = (static_cast<uint32_t>(rng_()) + begin) % kTable;
      std::memcpy(&bytes[begin * size], &table[at * size], length * size);
    }
  }

 private:
  static constexpr int64_t kTable = 1 << 20, kRun = 4096;
  // A model's tensors have a handful of different ones.
  const std::vector<std::byte>& TableOf(float deviation, float mean) {
    std::vector<std::byte>& table = tables_[{deviation, mean}];
    if (!table.empty()) return table;
    std::vector<float> numbers(normals_.size());
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = mean + deviation * normals_[i];
    table.resize(numbers.size() * SizeOf(dtype_));
    ConvertFloats(DType::kF32, numbers.data(), dtype_, table.data(),
                  static_cast<int64_t>(numbers.size()));
    return table;
  }

  const DType dtype_;
  std::mt19937 rng_;
  std::vector<float> normals_;
  std::map<std::pair<float, float>, std::vector<std::byte>> tables_;
};

}  // namespace

struct Weights::Storage {
  Checkpoint checkpoint;
  std::vector<kernels::Buffer> buffers;
};

Weights::Weights() : storage_(std::make_unique<Storage>()) {}
Weights::~Weights() = default;

absl::Status Weights::Init(const ModelConfig& config, Share tensor) {
  if (tensor.count < 1 || (tensor.count > 1 && config.kv_heads % tensor.count != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("tensor parallel over ", tensor.count,
                                                   " ranks: the model's ", config.kv_heads,
                                                   " KV heads do not divide among them"));
  }
  const PartShape whole = {.query_heads = {0, config.query_heads},
                           .kv_heads = {0, config.kv_heads},
                           .mlp = {0, config.mlp_size},
                           .vocabulary = {0, config.vocab_size}};
  config_ = config;
  share_ = tensor;
  shape_ = whole.Part(tensor);
  layers_.resize(config.layers);
  return absl::OkStatus();
}

std::vector<WantedTensor> Weights::TensorsOf(int layer, int64_t retaining_width) {
  const ModelConfig& c = config_;
  if (layer < 0) {
    std::vector<WantedTensor> all = {
        Matrix("model.embed_tokens.weight", c.vocab_size, c.hidden_size, &embedding_),
        Norm("model.norm.weight", c.hidden_size, &final_norm_)};
    all[0].deviation = 1.0f;
    if (!c.tied_embeddings)
      all.push_back(Matrix("lm_head.weight", c.vocab_size, c.hidden_size, &output_));
    return all;
  }
  std::vector<WantedTensor> all = TensorsOfLayer(c, layer, layers_[layer]);
  if (retaining_width == 0) return all;
  for (WantedTensor& w : TensorsOfRetainingHead(c, layer, retaining_width, layers_[layer])) {
    if (share_.count > 1 && w.out == &layers_[layer].retaining_fc1)
      w.columns = ColumnsOfShare(c, shape_);
    all.push_back(std::move(w));
  }
  return all;
}

void Weights::TakeShare(int layer) {
  if (share_.count == 1) return;
  if (layer < 0) {
    if (output_.present()) output_ = output_.Rows(shape_.vocabulary.begin, shape_.vocabulary.end);
    return;
  }
  LayerWeights& weights = layers_[layer];
  const TensorView fc1 = weights.retaining_fc1, fc2 = weights.retaining_fc2;
  weights = PartOf(weights, shape_, config_.head_dim, share_.index == 0);
  if (!fc1.present()) return;
  weights.retaining_fc1 = fc1;  // its columns are not one range: Place takes them
  weights.retaining_fc2 = fc2.Rows(shape_.kv_heads.begin, shape_.kv_heads.end);
}

absl::Status Weights::Place(const std::vector<WantedTensor>& wanted, kernels::Backend& backend,
                            std::vector<WeightCopy>& copies) {
  const auto moves = [&](const WantedTensor& w) {
    if (!w.out->present()) return false;  // a bias of another share
    const bool aligned = reinterpret_cast<uintptr_t>(w.out->data) % SizeOf(w.out->dtype) == 0;
    return w.file == nullptr || !w.columns.empty() || !aligned || w.out->dtype != config_.dtype ||
           backend.place() != kernels::Place::kHost;
  };
  std::vector<std::pair<const WantedTensor*, size_t>> placed;  // and where it begins
  size_t bytes = 0;
  for (const WantedTensor& w : wanted) {
    if (!moves(w)) {
      load_report_.mapped_bytes += w.out->numel() * SizeOf(w.out->dtype);
      continue;
    }
    load_report_.converted_tensors += w.out->dtype != config_.dtype;
    const bool joins = w.joins && !placed.empty() && placed.back().first == &w - 1;
    if (!joins) bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    placed.emplace_back(&w, bytes);
    int64_t numel = w.out->numel();
    if (!w.columns.empty()) numel = w.out->rows() * LengthOf(w.columns);
    bytes += numel * SizeOf(config_.dtype);
  }
  if (placed.empty()) return absl::OkStatus();
  APB_ASSIGN_OR_RETURN(kernels::Buffer buffer, backend.Allocate(bytes));
  for (const auto& [w, offset] : placed) {
    const TensorView source = *w->out;
    std::vector<int64_t> shape(source.shape.begin(), source.shape.begin() + source.rank);
    if (!w->columns.empty()) shape[1] = LengthOf(w->columns);
    const TensorView target =
        ViewOf(static_cast<std::byte*>(buffer.data()) + offset, config_.dtype, shape);
    int64_t at = 0;
    for (const Range& range : w->columns) {
      copies.push_back({w->name, source.Columns(range.begin, range.end),
                        target.Columns(at, at + range.length()), w->file});
      at += range.length();
    }
    if (w->columns.empty()) copies.push_back({w->name, source, target, w->file});
    *w->out = target;
  }
  storage_->buffers.push_back(std::move(buffer));
  return absl::OkStatus();
}

void Weights::SetDerivedViews() {
  if (config_.tied_embeddings)
    output_ = embedding_.Rows(shape_.vocabulary.begin, shape_.vocabulary.end);
  for (LayerWeights& layer : layers_) {
    layer.qkv_proj = Joined({layer.q_proj, layer.k_proj, layer.v_proj});
    layer.qkv_bias = Joined({layer.q_bias, layer.k_bias, layer.v_bias});
    layer.gate_up_proj = Joined({layer.gate_proj, layer.up_proj});
  }
}

absl::StatusOr<std::unique_ptr<Weights>> Weights::Load(const std::string& directory,
                                                       kernels::Backend& backend, Share tensor,
                                                       const LoadOptions& options) {
  auto weights = std::unique_ptr<Weights>(new Weights());
  APB_ASSIGN_OR_RETURN(ModelConfig c, LoadModelConfig(directory));
  weights->load_report_.checkpoint_dtype = c.dtype;
  APB_ASSIGN_OR_RETURN(c.dtype, ChooseType(c.dtype, backend, options.dtype));
  Checkpoint& checkpoint = weights->storage_->checkpoint;
  APB_RETURN_IF_ERROR(checkpoint.Open(directory));
  APB_ASSIGN_OR_RETURN(
      const bool has_heads,
      checkpoint.AddRetainingHeads(directory + "/retaining_heads.safetensors", c.layers));
  APB_RETURN_IF_ERROR(weights->Init(c, tensor));

  std::vector<std::vector<WantedTensor>> wanted;
  for (int layer = -1; layer < c.layers; ++layer) {
    wanted.push_back(weights->TensorsOf(layer, has_heads ? -1 : 0));
    for (WantedTensor& w : wanted.back()) {
      APB_ASSIGN_OR_RETURN(const Checkpoint::Found found, checkpoint.Find(w.name, w.shape));
      *w.out = found.view;
      w.file = found.file;
    }
    if (layer >= 0 && has_heads)
      APB_RETURN_IF_ERROR(CheckRetainingHead(weights->layers_[layer], layer));
  }
  std::vector<WeightCopy> copies;
  for (int layer = -1; layer < c.layers; ++layer) {
    weights->TakeShare(layer);
    APB_RETURN_IF_ERROR(weights->Place(wanted[layer + 1], backend, copies));
  }
  for (const WeightCopy& copy : copies)
    weights->load_report_.copied_bytes += copy.source.numel() * SizeOf(copy.source.dtype);
  APB_RETURN_IF_ERROR(CopyWeights(std::move(copies), backend, options.progress));
  weights->SetDerivedViews();
  return weights;
}

absl::StatusOr<std::unique_ptr<Weights>> Weights::Random(const ModelConfig& config, uint64_t seed,
                                                         int64_t retaining_width,
                                                         kernels::Backend& backend, Share tensor) {
  auto weights = std::unique_ptr<Weights>(new Weights());
  APB_RETURN_IF_ERROR(weights->Init(config, tensor));
  RandomFill random(seed, config.dtype);
  std::vector<std::vector<std::byte>> numbers;  // of a layer, in memory of the one before it
  for (int layer = -1; layer < config.layers; ++layer) {
    const std::vector<WantedTensor> wanted = weights->TensorsOf(layer, retaining_width);
    if (numbers.size() < wanted.size()) numbers.resize(wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) {
      const WantedTensor& w = wanted[i];
      const int64_t count = w.shape[0] * (w.shape.size() > 1 ? w.shape[1] : 1);
      random.Make(count, w.deviation, w.mean, numbers[i]);
      *w.out = ViewOf(numbers[i].data(), config.dtype, w.shape);
    }
    weights->TakeShare(layer);
    std::vector<WeightCopy> copies;
    APB_RETURN_IF_ERROR(weights->Place(wanted, backend, copies));
    APB_RETURN_IF_ERROR(CopyWeights(std::move(copies), backend, nullptr));
  }
  weights->SetDerivedViews();
  return weights;
}

}  // namespace apb::model
