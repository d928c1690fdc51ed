#include "engine/attention/document_prefill.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/attention/anchor_strategy.h"
#include "engine/attention/strategy_plan.h"
#include "engine/attention/strategy_registry.h"
#include "engine/base/status_macros.h"

namespace apb::attention {

using kernels::DType;
using kernels::TensorView;

namespace {

// The parts must fit together: plan, tokens, model, group and compressor. All ranks check all
// tokens, also those that another computes, so that they refuse alike and none waits for another.
absl::Status CheckParts(const ShardPlan& plan, int ranks, std::string_view compressor,
                        int64_t vocab_size, std::span<const int32_t> document,
                        std::span<const int32_t> embedded_query) {
  APB_RETURN_IF_ERROR(CheckRanks(plan, ranks));
  if (plan.document_length() != static_cast<int64_t>(document.size())) {
    return absl::InvalidArgumentError(absl::StrCat("a plan for ", plan.document_length(),
                                                   " document tokens, given ", document.size()));
  }
  for (const std::span<const int32_t>& tokens : {document, embedded_query}) {
    for (const int32_t token : tokens) {
      if (token < 0 || token >= vocab_size)
        return absl::InvalidArgumentError(
            absl::StrCat("token id ", token, " is outside the vocabulary of ", vocab_size));
    }
  }
  for (const AnchorSource source : plan.anchor) {
    const size_t length = source >= 0 ? document.size() : embedded_query.size();
    if (static_cast<size_t>(source >= 0 ? source : -1 - source) >= length)
      return absl::InvalidArgumentError("the plan's anchor has tokens that the prompt has not");
  }
  for (const HostShard& host : plan.hosts) {
    if (host.passing_length > 0 && compressor.empty())
      return absl::InvalidArgumentError("the plan passes tokens on: a compressor must be named");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<DocumentPrefill>> DocumentPrefill::Start(
    const PrefillContext& context, ShardPlan plan, std::string_view compressor_name,
    std::span<const int32_t> document, std::span<const int32_t> embedded_query,
    cache::SequenceKv& kv, kernels::Stream& stream) {
  APB_RETURN_IF_ERROR(CheckParts(plan, context.communicator.size(), compressor_name,
                                 context.weights.config().vocab_size, document, embedded_query));
  auto prefill = std::unique_ptr<DocumentPrefill>(new DocumentPrefill(context));
  prefill->plan_ = std::move(plan);
  const ShardPlan& p = prefill->plan_;
  std::unique_ptr<Compressor> compressor;
  if (!compressor_name.empty()) {
    APB_ASSIGN_OR_RETURN(compressor, CreateCompressor(compressor_name, context.weights,
                                                      context.backend, context.tensor));
  }
  const int ranks = context.communicator.size(), rank = context.communicator.rank();
  std::vector<int32_t> tokens, positions, local_positions;
  if (AnchorStrategy::NeedsAnchor(p, ranks, rank, compressor.get())) {
    for (const AnchorSource source : p.anchor) {
      positions.push_back(static_cast<int32_t>(tokens.size()));
      tokens.push_back(source >= 0 ? document[source] : embedded_query[-1 - source]);
    }
  }
  prefill->anchor_rows_ = static_cast<int64_t>(tokens.size());
  const HostRange range = HostsOfRank(static_cast<int>(p.hosts.size()), ranks, rank);
  for (int h = range.first; h < range.last; ++h) {
    const int64_t begin = static_cast<int64_t>(tokens.size());
    for (const TokenSpan& span : p.hosts[h].local) {
      for (int64_t t = span.begin; t < span.end; ++t) {
        tokens.push_back(document[t]);
        positions.push_back(static_cast<int32_t>(t));
        local_positions.push_back(static_cast<int32_t>(t));
      }
    }
    prefill->hosts_.push_back({h, begin, static_cast<int64_t>(tokens.size())});
  }
  APB_ASSIGN_OR_RETURN(std::vector<int64_t> slots, context.cache.Reserve(kv, local_positions));

  const model::ModelConfig& config = context.weights.config();
  const int64_t rows = static_cast<int64_t>(tokens.size()),
                local = static_cast<int64_t>(slots.size());
  APB_ASSIGN_OR_RETURN(prefill->hidden_, core::Tensor::Create(context.backend, config.dtype,
                                                              {rows, config.hidden_size}));
  APB_ASSIGN_OR_RETURN(
      prefill->positions_,
      core::Tensor::CopyOf(context.backend,
                           TensorView::Contiguous(positions.data(), DType::kI32, {rows})));
  APB_ASSIGN_OR_RETURN(
      prefill->slots_,
      core::Tensor::CopyOf(context.backend,
                           TensorView::Contiguous(slots.data(), DType::kI64, {local})));
  APB_RETURN_IF_ERROR(context.decoder.Embed(tokens, prefill->hidden_.view(), stream));
  APB_RETURN_IF_ERROR(stream.Synchronize());  // the host copies end here
  APB_ASSIGN_OR_RETURN(
      prefill->strategy_,
      CreateStrategy(p, context.weights.query_heads(), context.weights.kv_heads(),
                     std::move(compressor), context.backend, context.communicator));
  return prefill;
}

absl::Status DocumentPrefill::RunLayers(int begin, int end, kernels::Stream& stream) {
  return context_.decoder.RunLayers(begin, end, hidden_.view(), positions_.view(), *this, stream);
}

// Nothing reads the hidden states of document rows behind the last layer: it only stores K and V.
bool DocumentPrefill::WantsOutput(int layer) const {
  return last_output_ || layer + 1 < context_.weights.config().layers;
}

bool DocumentPrefill::WantsPreRope(int layer) const {
  return WantsOutput(layer) && strategy_->WantsPreRope(layer);
}

LayerCall DocumentPrefill::Call(int layer) const {
  return {.layer = layer,
          .plan = plan_,
          .anchor_rows = anchor_rows_,
          .hosts = hosts_,
          .scale = 1.0f / std::sqrt(static_cast<float>(context_.weights.config().head_dim)),
          .positions = positions_.view()};
}

absl::Status DocumentPrefill::BeforeRope(int layer, const TensorView& qkv,
                                         kernels::Stream& stream) {
  return strategy_->BeforeRope(Call(layer), qkv, stream);
}

absl::Status DocumentPrefill::Attend(int layer, const TensorView& q, const TensorView& k,
                                     const TensorView& v, const TensorView& out,
                                     kernels::Stream& stream) {
  const int64_t rows = k.rows();
  context_.backend.AppendToCache(k.Rows(anchor_rows_, rows), v.Rows(anchor_rows_, rows),
                                 slots_.view(), context_.cache.keys(layer),
                                 context_.cache.values(layer), stream);
  if (!WantsOutput(layer)) return absl::OkStatus();
  LayerCall call = Call(layer);
  call.q = q;
  call.k = k;
  call.v = v;
  call.out = out;
  return strategy_->Attend(call, stream);
}

}  // namespace apb::attention
