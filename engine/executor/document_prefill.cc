#include "engine/executor/document_prefill.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/context_parallel/strategy_info.h"

namespace apb::executor {

using kernels::DType;
using kernels::TensorView;

namespace {

// Checks that plan, tokens, model, group and compressor fit together. All ranks check all tokens,
// also those that other ranks compute, so that they refuse alike and none waits for another.
absl::Status CheckDocument(const PrefillDocument& document, int ranks, int64_t vocab_size) {
  const context_parallel::ShardPlan& plan = document.plan;
  const int64_t length = static_cast<int64_t>(document.tokens.size());
  APB_RETURN_IF_ERROR(context_parallel::CheckRanks(plan, ranks));
  if (plan.document_length() > length) {
    return absl::InvalidArgumentError(
        absl::StrCat("a plan for ", plan.document_length(), " document tokens, given ", length));
  }
  // The prefix is spread over the ranks, so each rank needs a host that reads its part.
  const bool reads_prefix = plan.strategy->starts_from_prefix && std::ssize(plan.hosts) == ranks;
  if (plan.document_length() < length && !reads_prefix) {
    return absl::InvalidArgumentError(absl::StrCat(
        "strategy '", std::string(plan.strategy->name), "' with hosts=", plan.hosts.size(), " on ",
        ranks, " ranks cannot start from a cached prefix"));
  }
  for (const std::span<const int32_t>& tokens : {document.tokens, document.embedded_query}) {
    for (const int32_t token : tokens) {
      if (token < 0 || token >= vocab_size)
        return absl::InvalidArgumentError(
            absl::StrCat("token id ", token, " is outside the vocabulary of ", vocab_size));
    }
  }
  for (const context_parallel::AnchorSource& source : plan.anchor) {
    const size_t available =
        source.in_query ? document.embedded_query.size() : document.tokens.size();
    if (static_cast<size_t>(source.index) >= available)
      return absl::InvalidArgumentError("the plan's anchor has tokens that the prompt has not");
  }
  for (const context_parallel::HostShard& host : plan.hosts) {
    if (host.passing_length > 0 && document.compressor.empty())
      return absl::InvalidArgumentError("the plan passes tokens on: a compressor must be named");
  }
  return absl::OkStatus();
}

absl::Status CheckBatch(const std::vector<PrefillDocument>& documents) {
  if (documents.empty()) return absl::InvalidArgumentError("a prefill of no documents");
  if (documents.size() == 1) return absl::OkStatus();
  const context_parallel::StrategyInfo& strategy = *documents[0].plan.strategy;
  for (const PrefillDocument& document : documents) {
    if (document.plan.strategy != &strategy || !strategy.can_batch) {
      return absl::InvalidArgumentError(
          absl::StrCat("documents of strategies '", std::string(strategy.name), "' and '",
                       std::string(document.plan.strategy->name), "' cannot be computed together"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void DocumentPrefill::AddAnchor(const PrefillDocument& document, Rows& rows) {
  const context_parallel::ShardPlan& plan = document.plan;
  if (!plan.strategy->needs_anchor(plan, deps_.communicator.size(), deps_.communicator.rank(),
                                   document.compressor))
    return;
  for (const context_parallel::AnchorSource& source : plan.anchor) {
    rows.positions.push_back(static_cast<int32_t>(rows.tokens.size()));
    rows.tokens.push_back(
        (source.in_query ? document.embedded_query : document.tokens)[source.index]);
  }
  anchor_rows_ = static_cast<int64_t>(rows.tokens.size());
}

absl::Status DocumentPrefill::AddDocument(PrefillDocument document, Rows& rows) {
  Document added{.plan = std::move(document.plan), .kv = document.kv};
  const int hosts = static_cast<int>(added.plan.hosts.size());
  const context_parallel::HostRange range =
      context_parallel::HostsOfRank(hosts, deps_.communicator.size(), deps_.communicator.rank());
  std::vector<int32_t> local_positions;
  for (int h = range.first; h < range.last; ++h) {
    const int64_t begin = static_cast<int64_t>(rows.tokens.size());
    for (const context_parallel::TokenSpan& span : added.plan.hosts[h].local) {
      for (int64_t t = span.begin; t < span.end; ++t) {
        rows.tokens.push_back(document.tokens[t]);
        local_positions.push_back(static_cast<int32_t>(t));
      }
    }
    added.hosts.push_back({h, begin, static_cast<int64_t>(rows.tokens.size())});
  }
  rows.positions.insert(rows.positions.end(), local_positions.begin(), local_positions.end());
  APB_ASSIGN_OR_RETURN(const std::vector<int64_t> slots,
                       deps_.cache.Reserve(*document.kv, local_positions));
  rows.slots.insert(rows.slots.end(), slots.begin(), slots.end());
  documents_.push_back(std::move(added));
  return absl::OkStatus();
}

absl::Status DocumentPrefill::Embed(Rows rows, kernels::Stream& stream) {
  const int64_t count = static_cast<int64_t>(rows.tokens.size()),
                stored = static_cast<int64_t>(rows.slots.size());
  const model::ModelConfig& config = deps_.weights.config();
  APB_ASSIGN_OR_RETURN(
      hidden_, core::Tensor::Create(deps_.backend, config.dtype, {count, config.hidden_size}));
  APB_ASSIGN_OR_RETURN(
      positions_,
      core::Tensor::CopyOf(deps_.backend,
                           TensorView::Contiguous(rows.positions.data(), DType::kI32, {count})));
  APB_ASSIGN_OR_RETURN(
      slots_, core::Tensor::CopyOf(
                  deps_.backend, TensorView::Contiguous(rows.slots.data(), DType::kI64, {stored})));
  APB_RETURN_IF_ERROR(deps_.decoder.Embed(rows.tokens, hidden_.view(), stream));
  return stream.Synchronize();  // the copies read vectors of this function
}

absl::StatusOr<std::unique_ptr<DocumentPrefill>> DocumentPrefill::Start(
    const PrefillDeps& deps, std::vector<PrefillDocument> documents, kernels::Stream& stream) {
  const model::ModelConfig& config = deps.weights.config();
  APB_RETURN_IF_ERROR(CheckBatch(documents));
  for (const PrefillDocument& document : documents)
    APB_RETURN_IF_ERROR(CheckDocument(document, deps.communicator.size(), config.vocab_size));
  auto prefill = std::unique_ptr<DocumentPrefill>(new DocumentPrefill(deps));
  Rows rows;
  prefill->AddAnchor(documents[0], rows);
  const std::string_view compressor = documents[0].compressor;
  prefill->documents_.reserve(documents.size());  // strategies keep pointers to the plans
  std::vector<context_parallel::StrategyDocument> seen;
  for (PrefillDocument& document : documents) {
    const int64_t length = static_cast<int64_t>(document.tokens.size()),
                  cached = document.kv->slot_count();
    const int64_t prefix = length - document.plan.document_length();
    APB_RETURN_IF_ERROR(prefill->AddDocument(std::move(document), rows));
    const Document& added = prefill->documents_.back();
    seen.push_back({.plan = &added.plan,
                    .cached_slots = deps.cache.Slots(*added.kv, 0, cached),
                    .prefix_length = prefix});
  }
  APB_RETURN_IF_ERROR(prefill->Embed(std::move(rows), stream));
  const context_parallel::StrategyDeps strategy_deps{.query_heads = deps.weights.query_heads(),
                                                     .kv_heads = deps.weights.kv_heads(),
                                                     .cache = deps.cache,
                                                     .backend = deps.backend,
                                                     .communicator = deps.communicator,
                                                     .compressor = compressor,
                                                     .weights = &deps.weights,
                                                     .tensor = deps.tensor,
                                                     .overlap_passing = deps.overlap_passing};
  APB_ASSIGN_OR_RETURN(prefill->strategy_,
                       seen[0].plan->strategy->create(seen, strategy_deps, stream));
  return prefill;
}

absl::Status DocumentPrefill::Drop(const cache::SequenceKv& kv, kernels::Stream& stream) {
  for (const Document& document : documents_) {
    if (document.kv != &kv) continue;
    for (const context_parallel::HostRows& rows : document.hosts) {
      std::vector<int64_t> nowhere(rows.end - rows.begin, -1);
      const int64_t count = static_cast<int64_t>(nowhere.size());
      deps_.backend.Copy(TensorView::Contiguous(nowhere.data(), DType::kI64, {count}),
                         slots_.view().Rows(rows.begin - anchor_rows_, rows.end - anchor_rows_),
                         stream);
      APB_RETURN_IF_ERROR(stream.Synchronize());  // the copy reads `nowhere`
    }
  }
  return absl::OkStatus();
}

absl::Status DocumentPrefill::RunLayers(int begin, int end, kernels::Stream& stream) {
  return deps_.decoder.RunLayers(begin, end, hidden_.view(), positions_.view(), *this, stream);
}

model::LayerAttention::Store DocumentPrefill::StoreOf(int layer) const {
  return {{slots_.view(), deps_.cache.keys(layer), deps_.cache.values(layer)}, anchor_rows_};
}

// Nothing reads the hidden states of document tokens behind the last layer, so that layer only
// stores K and V.
bool DocumentPrefill::WantsOutput(int layer) const {
  return last_output_ || layer + 1 < deps_.weights.config().layers;
}

bool DocumentPrefill::WantsPreRope(int layer) const {
  return WantsOutput(layer) && strategy_->WantsPreRope(layer);
}

context_parallel::LayerCall DocumentPrefill::Call(int layer) const {
  return {.layer = layer,
          .anchor_rows = anchor_rows_,
          .hosts = documents_[0].hosts,
          .scale = 1.0f / std::sqrt(static_cast<float>(deps_.weights.config().head_dim)),
          .positions = positions_.view()};
}

absl::Status DocumentPrefill::BeforeRope(int layer, const TensorView& qkv,
                                         kernels::Stream& stream) {
  return strategy_->BeforeRope(Call(layer), qkv, stream);
}

absl::Status DocumentPrefill::Attend(int layer, const TensorView& q, const TensorView& k,
                                     const TensorView& v, const TensorView& out,
                                     kernels::Stream& stream) {
  context_parallel::LayerCall call = Call(layer);
  call.q = q;
  call.k = k;
  call.v = v;
  call.out = out;
  return strategy_->Attend(call, stream);
}

}  // namespace apb::executor
