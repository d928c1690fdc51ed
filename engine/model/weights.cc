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
#include "engine/model/wanted_tensor.h"

namespace apb::model {

namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int64_t kMaxRetainingWidth = 1 << 16;
constexpr size_t kAlignment = 256;  // of a tensor in the backend's memory

// fc1 and fc2 of a layer must have the same width.
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

// The type of weights and activations.
absl::StatusOr<DType> ChooseType(DType of_checkpoint, const kernels::Backend& backend,
                                 std::optional<DType> wanted) {
  const bool host = backend.place() == kernels::Place::kCpu;
  if (host && wanted == DType::kF16) {
    return absl::InvalidArgumentError(
        "float16: the CPU does not compute in it; choose bfloat16 or float32 (auto converts "
        "float16 checkpoints to bfloat16)");
  }
  if (wanted) return *wanted;
  return host && of_checkpoint == DType::kF16 ? DType::kBF16 : of_checkpoint;
}

absl::Status CheckQuantization(const ModelConfig& config, const LoadOptions& options,
                               const kernels::Backend& backend) {
  if (backend.place() == kernels::Place::kCpu) return absl::OkStatus();
  if (config.quantization.format != PackedFormat::kNone) {
    return absl::InvalidArgumentError(
        absl::StrCat("the checkpoint is quantized (", NameOf(config.quantization.format),
                     "), which the CUDA backend does not compute with: use --device cpu, or the "
                     "checkpoint of bfloat16 or float16"));
  }
  if (!options.quantize) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "--quantize: the CUDA backend does not compute with quantized weights: use --device cpu, or "
      "leave --quantize out");
}

// Normally distributed numbers of a fixed seed. Runs of them are copied from random places of a
// table that already has the target's type, so that billions of numbers take seconds.
class RandomFill {
 public:
  RandomFill(uint64_t seed, DType dtype)
      : dtype_(dtype), rng_(static_cast<uint32_t>(seed)), normals_(kTable + kRun) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kTable; ++i) normals_[i] = normal(rng_);
    // The begin is repeated behind the end, so that a run may start at any place of the table.
    std::copy_n(normals_.begin(), kRun, normals_.begin() + kTable);
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
  // One table for each deviation and mean: a model's tensors have a handful of different ones.
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

std::optional<DType> BlockTypeNamed(std::string_view name) {
  if (name == "int8") return DType::kI8Block;
  if (name == "int4") return DType::kI4Block;
  return std::nullopt;
}

struct Weights::Storage {
  Checkpoint checkpoint;
  std::vector<kernels::Buffer> buffers;
};

Weights::Weights() : storage_(std::make_unique<Storage>()) {}
Weights::~Weights() = default;

std::string_view Weights::weight_type() const {
  if (load_report_.int4_products > 0) return "int4";
  return load_report_.int8_products > 0 ? "int8" : TorchName(config_.dtype);
}

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
  if (layer >= 0)
    return TensorsOfLayer(config_, layer, shape_, share_, retaining_width, layers_[layer]);
  // The embedding is not quantized, so a quantized output projection is a tensor of its own.
  const bool own_output = quantize_ && config_.hidden_size % kernels::kBlockLength == 0;
  return TensorsOutsideLayers(config_, shape_, own_output, &embedding_, &final_norm_, &output_);
}

DType Weights::TypeOf(const WantedTensor& wanted) {
  if (wanted.packed) return wanted.packed->type();
  if (!quantize_ || !wanted.multiplies) return config_.dtype;
  if (wanted.column_count() % kernels::kBlockLength == 0)
    return wanted.out == &output_ ? DType::kI8Block : *quantize_;
  load_report_.unquantized.push_back(
      absl::StrCat(wanted.name, " has ", wanted.column_count(), " inputs"));
  return config_.dtype;
}

void Weights::Report(const WantedTensor& wanted, int64_t bytes) {
  LoadReport& report = load_report_;
  if (wanted.multiplies) ++report.products;
  if (!kernels::IsBlockType(wanted.type)) {
    report.converted_tensors += wanted.out->dtype != config_.dtype;
    return;
  }
  ++(wanted.type == DType::kI4Block ? report.int4_products : report.int8_products);
  report.quantized_bytes += bytes;
  report.quantized_again += wanted.packed && wanted.packed->quantizes_again();
}

absl::Status Weights::Place(std::vector<WantedTensor>& wanted, kernels::Backend& backend,
                            std::vector<WeightCopy>& copies) {
  const auto moves = [&](const WantedTensor& w) {
    if (w.packed) return true;
    const bool aligned = reinterpret_cast<uintptr_t>(w.out->data) % SizeOf(w.out->dtype) == 0;
    return w.file == nullptr || w.columns.size() > 1 || !aligned || w.out->dtype != w.type ||
           backend.place() != kernels::Place::kCpu;
  };
  std::vector<std::pair<WantedTensor*, size_t>> placed;  // with its offset in the buffer, in bytes
  size_t bytes = 0;
  for (WantedTensor& w : wanted) {
    if (!w.packed && !w.out->present()) continue;  // a bias that only another share has
    w.type = TypeOf(w);
    const int64_t size = kernels::BytesOf(w.type, w.row_count() * w.column_count());
    Report(w, size);
    if (!moves(w)) {
      load_report_.mapped_bytes += size;
      continue;
    }
    const bool joins = w.joins && !placed.empty() && placed.back().first == &w - 1 &&
                       placed.back().first->type == w.type;
    if (!joins) bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    placed.emplace_back(&w, bytes);
    bytes += size;
  }
  if (placed.empty()) return absl::OkStatus();
  APB_ASSIGN_OR_RETURN(kernels::Buffer buffer, backend.Allocate(bytes));
  for (const auto& [w, offset] : placed) {
    const TensorView source = *w->out;
    std::vector<int64_t> shape = {w->row_count()};
    if (w->shape.size() > 1) shape.push_back(w->column_count());
    const TensorView target =
        ViewOf(static_cast<std::byte*>(buffer.data()) + offset, w->type, shape);
    *w->out = target;
    if (w->packed || w->columns.size() <= 1) {
      copies.push_back({w->name, source, target, w->file, w->packed});
      continue;
    }
    int64_t at = 0;
    for (const Range& range : w->columns) {
      copies.push_back({w->name, source.Columns(range.begin, range.end),
                        target.Columns(at, at + range.length()), w->file});
      at += range.length();
    }
  }
  storage_->buffers.push_back(std::move(buffer));
  return absl::OkStatus();
}

void Weights::SetDerivedViews() {
  if (config_.tied_embeddings && !output_.present())
    output_ = embedding_.Rows(shape_.vocabulary.begin, shape_.vocabulary.end);
  for (LayerWeights& layer : layers_) {
    layer.qkv_proj = Joined({layer.q_proj, layer.k_proj, layer.v_proj});
    layer.qkv_bias = Joined({layer.q_bias, layer.k_bias, layer.v_bias});
    layer.gate_up_proj = Joined({layer.gate_proj, layer.up_proj});
  }
}

absl::Status Weights::FindAll(bool has_heads, std::vector<std::vector<WantedTensor>>& all) {
  const Checkpoint& checkpoint = storage_->checkpoint;
  for (int layer = -1; layer < config_.layers; ++layer) {
    all.push_back(TensorsOf(layer, has_heads ? -1 : 0));
    for (WantedTensor& w : all.back()) {
      if (w.multiplies) {
        APB_ASSIGN_OR_RETURN(w.packed, PackedMatrix::Find(checkpoint, config_.quantization, w.name,
                                                          w.shape[0], w.shape[1]));
      }
      if (w.packed) {
        APB_RETURN_IF_ERROR(w.packed->Cut(w.rows.value_or(Range{0, w.shape[0]}),
                                          w.columns.empty() ? Range{0, w.shape[1]} : w.columns[0]));
        w.file = w.packed->file();
        continue;
      }
      APB_ASSIGN_OR_RETURN(const Checkpoint::Found found, checkpoint.Find(w.name, w.shape));
      w.shape.assign(found.view.shape.begin(), found.view.shape.begin() + found.view.rank);
      *w.out = found.view;
      w.file = found.file;
    }
    if (layer >= 0 && has_heads) APB_RETURN_IF_ERROR(CheckRetainingHead(layers_[layer], layer));
    for (WantedTensor& w : all.back())
      if (!w.packed) *w.out = ShareOf(w, *w.out);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Weights>> Weights::Load(const std::string& directory,
                                                       kernels::Backend& backend, Share tensor,
                                                       const LoadOptions& options) {
  auto weights = std::unique_ptr<Weights>(new Weights());
  APB_ASSIGN_OR_RETURN(ModelConfig c, LoadModelConfig(directory));
  weights->load_report_.checkpoint_dtype = c.dtype;
  weights->quantize_ = options.quantize;
  APB_RETURN_IF_ERROR(CheckQuantization(c, options, backend));
  APB_ASSIGN_OR_RETURN(c.dtype, ChooseType(c.dtype, backend, options.dtype));
  Checkpoint& checkpoint = weights->storage_->checkpoint;
  APB_RETURN_IF_ERROR(checkpoint.Open(directory));
  APB_ASSIGN_OR_RETURN(
      const bool has_heads,
      checkpoint.AddRetainingHeads(directory + "/retaining_heads.safetensors", c.layers));
  APB_RETURN_IF_ERROR(weights->Init(c, tensor));

  std::vector<std::vector<WantedTensor>> wanted;
  APB_RETURN_IF_ERROR(weights->FindAll(has_heads, wanted));
  std::vector<WeightCopy> copies;
  for (std::vector<WantedTensor>& of_layer : wanted)
    APB_RETURN_IF_ERROR(weights->Place(of_layer, backend, copies));
  for (const WeightCopy& copy : copies) weights->load_report_.copied_bytes += copy.source_bytes();
  APB_RETURN_IF_ERROR(CopyWeights(std::move(copies), backend, options.progress, options.threads));
  weights->SetDerivedViews();
  return weights;
}

absl::StatusOr<std::unique_ptr<Weights>> Weights::Random(const ModelConfig& config, uint64_t seed,
                                                         int64_t retaining_width,
                                                         kernels::Backend& backend, Share tensor,
                                                         std::optional<DType> quantize) {
  auto weights = std::unique_ptr<Weights>(new Weights());
  weights->quantize_ = quantize;
  APB_RETURN_IF_ERROR(weights->Init(config, tensor));
  RandomFill random(seed, config.dtype);
  std::vector<std::vector<std::byte>> numbers;  // of one layer; the next layer reuses the memory
  for (int layer = -1; layer < config.layers; ++layer) {
    std::vector<WantedTensor> wanted = weights->TensorsOf(layer, retaining_width);
    if (numbers.size() < wanted.size()) numbers.resize(wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) {
      const WantedTensor& w = wanted[i];
      const int64_t count = w.shape[0] * (w.shape.size() > 1 ? w.shape[1] : 1);
      // An output projection that is tied to the embedding has the embedding's numbers.
      const bool tied = i > 0 && w.name == wanted[0].name;
      if (!tied) random.Make(count, w.deviation, w.mean, numbers[i]);
      *w.out = ShareOf(w, ViewOf(numbers[tied ? 0 : i].data(), config.dtype, w.shape));
    }
    std::vector<WeightCopy> copies;
    APB_RETURN_IF_ERROR(weights->Place(wanted, backend, copies));
    APB_RETURN_IF_ERROR(CopyWeights(std::move(copies), backend, nullptr, 0));
  }
  weights->SetDerivedViews();
  return weights;
}

}  // namespace apb::model
