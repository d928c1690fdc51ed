#include "engine/model/decoder.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/model/rope_tables.h"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;

// Adds the stream's time since construction to a counter.
class PhaseTimer {
 public:
  PhaseTimer(kernels::Stream& stream, bool timed, double& total)
      : stream_(stream), timed_(timed), total_(total), begin_(timed ? stream.Mark() : 0) {}
  ~PhaseTimer() {
    if (timed_) stream_.AddSeconds(begin_, stream_.Mark(), &total_);
  }
  PhaseTimer(const PhaseTimer&) = delete;
  PhaseTimer& operator=(const PhaseTimer&) = delete;

 private:
  kernels::Stream& stream_;
  const bool timed_;
  double& total_;
  const int64_t begin_;
};

// Refuses slices that would cut a block of quantized weights. All ranks check all slices, so that
// they agree.
absl::Status CheckSlices(const LayerWeights& layer, const PartShape& whole, int64_t head_dim,
                         int count) {
  const auto cuts_block = [](const TensorView& weight, const Range& columns) {
    return kernels::IsBlockType(weight.dtype) &&
           (columns.begin % kernels::kBlockLength != 0 || columns.end % kernels::kBlockLength != 0);
  };
  for (int r = 0; r < count; ++r) {
    const PartShape part = whole.Part({r, count});
    const Range heads{part.query_heads.begin * head_dim, part.query_heads.end * head_dim};
    if (!cuts_block(layer.o_proj, heads) && !cuts_block(layer.down_proj, part.mlp)) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "slices for ", count, " ranks would divide quantized weights within blocks of ",
        kernels::kBlockLength, " inputs"));
  }
  return absl::OkStatus();
}

}  // namespace

Decoder::Decoder(const Weights& weights, kernels::Backend& backend)
    : weights_(weights),
      backend_(backend),
      row_chunk_(backend.place() == kernels::Place::kCpu ? kCpuRowChunk : kDeviceRowChunk),
      few_(backend),
      many_(backend),
      ids_(backend) {}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(const Weights& weights,
                                                         kernels::Backend& backend,
                                                         comm::Communicator* tensor) {
  auto decoder = std::unique_ptr<Decoder>(new Decoder(weights, backend));
  const RopeTable table = MakeRopeTable(weights.config().rope, weights.config().head_dim);
  decoder->attention_factor_ = table.attention_factor;
  const int64_t half = static_cast<int64_t>(table.inv_freq.size());
  APB_ASSIGN_OR_RETURN(decoder->inv_freq_,
                       core::Tensor::CopyOf(backend, TensorView::Contiguous(
                                                         const_cast<float*>(table.inv_freq.data()),
                                                         DType::kF32, {half})));
  Division& whole = decoder->whole_;
  for (int l = 0; l < weights.config().layers; ++l) whole.layers.push_back(weights.layer(l));
  whole.output = weights.output();
  whole.shape = weights.shape();
  APB_RETURN_IF_ERROR(decoder->AllocateFew());
  if (tensor != nullptr && tensor->size() > 1) {
    whole.sums = tensor;
    std::vector<std::vector<Range>> vocabulary;
    for (int r = 0; r < tensor->size(); ++r)
      vocabulary.push_back({PartOf(weights.config().vocab_size, {r, tensor->size()})});
    whole.logits = std::make_unique<ColumnGather>(backend, *tensor, std::move(vocabulary));
  }
  return decoder;
}

// Sizes are those of a whole call: a slice is a part of it and needs no more.
absl::Status Decoder::AllocateFew() {
  const ModelConfig& c = config();
  const int64_t attended = whole_.shape.query_heads.length() * c.head_dim;
  APB_RETURN_IF_ERROR(few_.qkv.Get(c.dtype, {kFewRows, weights_.qkv_width()}).status());
  APB_RETURN_IF_ERROR(few_.attended.Get(c.dtype, {kFewRows, attended}).status());
  APB_RETURN_IF_ERROR(few_.normed.Get(c.dtype, {kFewRows, c.hidden_size}).status());
  APB_RETURN_IF_ERROR(
      few_.gate_up.Get(c.dtype, {kFewRows, 2 * whole_.shape.mlp.length()}).status());
  return few_.sums.Get(DType::kF32, {kFewRows, c.hidden_size}).status();
}

absl::Status Decoder::EnableSlices(comm::Communicator& context, comm::Communicator& all) {
  const PartShape& whole = weights_.shape();
  const int64_t d = config().head_dim, count = context.size(), shares = weights_.share().count;
  if (whole.query_heads.length() < count || whole.mlp.length() < count ||
      whole.vocabulary.length() < count) {
    return absl::FailedPreconditionError(
        absl::StrCat(count, " ranks are more than the model's heads to divide among them"));
  }
  for (const LayerWeights& layer : whole_.layers)
    APB_RETURN_IF_ERROR(CheckSlices(layer, whole, d, context.size()));
  const Share mine{context.rank(), context.size()};
  auto division = std::make_unique<Division>();
  division->shape = whole.Part(mine);
  for (const LayerWeights& layer : whole_.layers)
    division->layers.push_back(PartOf(layer, division->shape, d, mine.index == 0));
  const Range& rows = division->shape.vocabulary;
  division->output = weights_.output().Rows(rows.begin, rows.end);
  division->sums = &all;
  std::vector<std::vector<Range>> qkv, vocabulary;
  const int64_t k_begin = weights_.query_heads() * d, v_begin = k_begin + weights_.kv_heads() * d;
  for (int r = 0; r < context.size(); ++r) {
    const PartShape part = whole.Part({r, context.size()});
    const Range kv{part.kv_heads.begin * d, part.kv_heads.end * d};
    qkv.push_back({{part.query_heads.begin * d, part.query_heads.end * d},
                   {k_begin + kv.begin, k_begin + kv.end},
                   {v_begin + kv.begin, v_begin + kv.end}});
  }
  for (int r = 0; r < all.size(); ++r) {
    const Share share{static_cast<int>(r % shares), static_cast<int>(shares)};
    const Range of_share = PartOf(config().vocab_size, share);
    const Range part = PartOf(of_share.length(), {static_cast<int>(r / shares), context.size()});
    vocabulary.push_back({{of_share.begin + part.begin, of_share.begin + part.end}});
  }
  division->qkv = std::make_unique<ColumnGather>(backend_, context, std::move(qkv));
  division->logits = std::make_unique<ColumnGather>(backend_, all, std::move(vocabulary));
  sliced_ = std::move(division);
  return absl::OkStatus();
}

absl::Status Decoder::CheckTokens(std::span<const int32_t> tokens) const {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= config().vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " is outside the vocabulary of ", config().vocab_size));
    }
  }
  return absl::OkStatus();
}

void Decoder::Embed(const TensorView& ids, const TensorView& hidden, kernels::Stream& stream) {
  backend_.Embedding(weights_.embedding(), ids, hidden, stream);
}

absl::Status Decoder::Embed(std::span<const int32_t> tokens, const TensorView& hidden,
                            kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(CheckTokens(tokens));
  const int64_t count = static_cast<int64_t>(tokens.size());
  APB_ASSIGN_OR_RETURN(const TensorView ids, ids_.Get(DType::kI32, {count}));
  backend_.Copy(TensorView::Contiguous(const_cast<int32_t*>(tokens.data()), DType::kI32, {count}),
                ids, stream);
  Embed(ids, hidden, stream);
  return absl::OkStatus();
}

absl::Status Decoder::Project(const Division& division, int l, const TensorView& hidden,
                              const TensorView& qkv, bool only_kv, kernels::Stream& stream) {
  const ModelConfig& c = config();
  const LayerWeights& layer = division.layers[l];
  const int64_t q_width = division.shape.query_heads.length() * c.head_dim,
                kv_width = division.shape.kv_heads.length() * c.head_dim;
  const float epsilon = static_cast<float>(c.rms_norm_epsilon);
  const auto normalize_heads = [&](const TensorView& x, const TensorView& norm) {
    if (!norm.present()) return;
    const TensorView heads = x.SplitHeads(c.head_dim);
    backend_.RmsNorm(heads, norm, epsilon, heads, stream);
  };
  for (int64_t begin = 0; begin < hidden.rows(); begin += row_chunk_) {
    const int64_t end = std::min(begin + row_chunk_, hidden.rows());
    APB_ASSIGN_OR_RETURN(const TensorView normed,
                         ScratchOf(end - begin).normed.Get(c.dtype, {end - begin, c.hidden_size}));
    backend_.RmsNorm(hidden.Rows(begin, end), layer.input_norm, epsilon, normed, stream);
    const TensorView rows = qkv.Rows(begin, end), q = rows.Columns(0, q_width),
                     k = rows.Columns(q_width, q_width + kv_width),
                     v = rows.Columns(q_width + kv_width, q_width + 2 * kv_width);
    const auto product = [&](const TensorView& weight, const TensorView& bias,
                             const TensorView& out) {
      backend_.Linear({.x = normed, .weight = weight, .bias = bias, .out = out}, stream);
    };
    const bool as_one =
        layer.qkv_proj.present() && layer.q_bias.present() == layer.qkv_bias.present();
    if (as_one && !only_kv) {
      product(layer.qkv_proj, layer.qkv_bias, rows);
    } else {
      if (!only_kv) product(layer.q_proj, layer.q_bias, q);
      if (kv_width > 0) {  // 0 on some ranks if there are more ranks than KV heads
        product(layer.k_proj, layer.k_bias, k);
        product(layer.v_proj, layer.v_bias, v);
      }
    }
    if (!only_kv) normalize_heads(q, layer.q_norm);
    if (kv_width > 0) normalize_heads(k, layer.k_norm);
  }
  return absl::OkStatus();
}

void Decoder::RotateAndStore(const TensorView& qkv, const TensorView& positions, bool only_kv,
                             const LayerAttention::Store& store, kernels::Stream& stream) {
  const int64_t d = config().head_dim, q_width = weights_.query_heads() * d,
                kv_width = weights_.kv_heads() * d;
  // q and k lie side by side and rotate alike.
  backend_.Rope({.x = qkv.Columns(only_kv ? q_width : 0, q_width + kv_width).SplitHeads(d),
                 .positions = positions,
                 .inv_freq = inv_freq_.view(),
                 .attention_factor = attention_factor_,
                 .store = store.to,
                 .v = qkv.Columns(q_width + kv_width, q_width + 2 * kv_width).SplitHeads(d),
                 .store_begin = store.first_row},
                stream);
}

absl::Status Decoder::AddProduct(const Division& division, const Product& product,
                                 const TensorView& rows, double& phase, kernels::Stream& stream) {
  const auto& [x, weight, bias, norm, normed] = product;
  const float epsilon = static_cast<float>(config().rms_norm_epsilon);
  if (division.sums == nullptr) {
    PhaseTimer timer(stream, timed_, phase);
    backend_.Linear({.x = x, .weight = weight, .bias = bias, .out = rows, .accumulate = true},
                    stream);
    if (normed.present()) backend_.RmsNorm(rows, norm, epsilon, normed, stream);
    return absl::OkStatus();
  }
  APB_ASSIGN_OR_RETURN(const TensorView sums,
                       ScratchOf(rows.rows()).sums.Get(DType::kF32, {rows.rows(), rows.shape[1]}));
  {
    PhaseTimer timer(stream, timed_, phase);
    backend_.Linear({.x = x, .weight = weight, .bias = bias, .out = sums}, stream);
  }
  {
    PhaseTimer timer(stream, timed_, phase_seconds_.communicate);
    APB_RETURN_IF_ERROR(division.sums->AllReduce(sums, comm::ReduceOp::kSum, stream));
  }
  PhaseTimer timer(stream, timed_, phase);
  if (normed.present()) {
    backend_.AccumulateRmsNorm(sums, rows, norm, epsilon, normed, stream);
  } else {
    backend_.Accumulate(sums, rows, stream);
  }
  return absl::OkStatus();
}

absl::Status Decoder::OutputAndMlp(const Division& division, int l, const TensorView& attended,
                                   const TensorView& hidden, kernels::Stream& stream) {
  const ModelConfig& c = config();
  const LayerWeights& layer = division.layers[l];
  const int64_t width = division.shape.mlp.length();
  for (int64_t begin = 0; begin < hidden.rows(); begin += row_chunk_) {
    const int64_t end = std::min(begin + row_chunk_, hidden.rows());
    const TensorView rows = hidden.Rows(begin, end);
    APB_ASSIGN_OR_RETURN(const TensorView normed,
                         ScratchOf(end - begin).normed.Get(c.dtype, {end - begin, c.hidden_size}));
    APB_RETURN_IF_ERROR(AddProduct(division,
                                   {.x = attended.Rows(begin, end),
                                    .weight = layer.o_proj,
                                    .bias = layer.o_bias,
                                    .norm = layer.post_norm,
                                    .normed = normed},
                                   rows, phase_seconds_.projection, stream));
    APB_ASSIGN_OR_RETURN(const TensorView gate_up,
                         ScratchOf(end - begin).gate_up.Get(c.dtype, {end - begin, 2 * width}));
    const TensorView gate = gate_up.Columns(0, width), up = gate_up.Columns(width, 2 * width);
    {
      PhaseTimer timer(stream, timed_, phase_seconds_.mlp);
      if (layer.gate_up_proj.present()) {
        backend_.Linear({.x = normed, .weight = layer.gate_up_proj, .out = gate_up}, stream);
      } else {
        backend_.Linear({.x = normed, .weight = layer.gate_proj, .out = gate}, stream);
        backend_.Linear({.x = normed, .weight = layer.up_proj, .out = up}, stream);
      }
      backend_.SiluMul(gate, up, gate, stream);
    }
    APB_RETURN_IF_ERROR(AddProduct(division, {.x = gate, .weight = layer.down_proj}, rows,
                                   phase_seconds_.mlp, stream));
  }
  return absl::OkStatus();
}

absl::Status Decoder::RunLayers(int layer_begin, int layer_end, const TensorView& hidden,
                                const TensorView& positions, LayerAttention& attention,
                                kernels::Stream& stream, bool sliced) {
  if (sliced && sliced_ == nullptr)
    return absl::InternalError("sliced layers asked of a decoder that has no slices");
  const Division& division = sliced ? *sliced_ : whole_;
  const ModelConfig& c = config();
  timed_ = backend_.place() == kernels::Place::kCpu || hidden.rows() >= kTimedRows;
  const int64_t rows = hidden.rows(), d = c.head_dim, q_width = weights_.query_heads() * d,
                kv_width = weights_.kv_heads() * d,
                own_width = division.shape.query_heads.length() * d;
  Scratch& scratch = ScratchOf(rows);
  APB_ASSIGN_OR_RETURN(const TensorView qkv,
                       scratch.qkv.Get(c.dtype, {rows, weights_.qkv_width()}));
  APB_ASSIGN_OR_RETURN(const TensorView attended, scratch.attended.Get(c.dtype, {rows, own_width}));
  for (int l = layer_begin; l < layer_end; ++l) {
    const bool wants_output = attention.WantsOutput(l), wants_qkv = attention.WantsPreRope(l);
    // q is not computed if neither attention nor BeforeRope reads it.
    const bool only_kv = !wants_output && !wants_qkv;
    TensorView projected = qkv;
    if (division.qkv != nullptr) {
      APB_ASSIGN_OR_RETURN(projected, division.qkv->Mine(c.dtype, rows));
    }
    {
      PhaseTimer timer(stream, timed_, phase_seconds_.projection);
      APB_RETURN_IF_ERROR(Project(division, l, hidden, projected, only_kv, stream));
    }
    if (division.qkv != nullptr) {
      PhaseTimer timer(stream, timed_, phase_seconds_.communicate);
      APB_RETURN_IF_ERROR(division.qkv->Gather(qkv, stream));
    }
    if (wants_qkv) {
      PhaseTimer timer(stream, timed_, phase_seconds_.compress);
      APB_RETURN_IF_ERROR(attention.BeforeRope(l, qkv, stream));
    }
    {
      PhaseTimer timer(stream, timed_, phase_seconds_.projection);
      RotateAndStore(qkv, positions, only_kv, attention.StoreOf(l), stream);
    }
    if (!wants_output) continue;
    {
      PhaseTimer timer(stream, timed_, phase_seconds_.attend);
      APB_RETURN_IF_ERROR(
          attention.Attend(l, qkv.Columns(0, q_width).SplitHeads(d),
                           qkv.Columns(q_width, q_width + kv_width).SplitHeads(d),
                           qkv.Columns(q_width + kv_width, q_width + 2 * kv_width).SplitHeads(d),
                           attended.SplitHeads(d), stream));
    }
    APB_RETURN_IF_ERROR(OutputAndMlp(division, l, attended, hidden, stream));
  }
  return absl::OkStatus();
}

absl::Status Decoder::Logits(const TensorView& hidden, const TensorView& logits,
                             kernels::Stream& stream, bool sliced) {
  if (sliced && sliced_ == nullptr)
    return absl::InternalError("sliced logits asked of a decoder that has no slices");
  const Division& division = sliced ? *sliced_ : whole_;
  PhaseTimer timer(stream, timed_, phase_seconds_.head);
  const ModelConfig& c = config();
  APB_ASSIGN_OR_RETURN(
      const TensorView normed,
      ScratchOf(hidden.rows()).normed.Get(c.dtype, {hidden.rows(), c.hidden_size}));
  backend_.RmsNorm(hidden, weights_.final_norm(), static_cast<float>(c.rms_norm_epsilon), normed,
                   stream);
  if (division.logits == nullptr) {
    backend_.Linear({.x = normed, .weight = division.output, .out = logits}, stream);
    return absl::OkStatus();
  }
  APB_ASSIGN_OR_RETURN(const TensorView mine, division.logits->Mine(DType::kF32, hidden.rows()));
  backend_.Linear({.x = normed, .weight = division.output, .out = mine}, stream);
  return division.logits->Gather(logits, stream);
}

int64_t Decoder::row_memory_moves() const { return sliced_ == nullptr ? 0 : sliced_->qkv->moves(); }

void Decoder::Trim() {
  constexpr size_t kKeepBytes = 16 << 20;
  many_.qkv.Trim(kKeepBytes);
  many_.attended.Trim(kKeepBytes);
  ids_.Trim(kKeepBytes);
}

}  // namespace apb::model
