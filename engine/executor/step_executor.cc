#include "engine/executor/step_executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace apb::executor {

using kernels::DType;
using kernels::TensorView;
using schedule::SequenceId;

StepExecutor::StepExecutor(const model::Weights& weights, kernels::Backend& backend,
                           const comm::Mesh& mesh)
    : weights_(weights),
      backend_(backend),
      mesh_(mesh),
      ids_(backend),
      hidden_(backend),
      sampled_(backend),
      logits_(backend),
      graphs_(backend, mesh),
      sampler_(backend) {}

absl::StatusOr<std::unique_ptr<StepExecutor>> StepExecutor::Create(const model::Weights& weights,
                                                                   const cache::KvCacheShape& shape,
                                                                   kernels::Backend& backend,
                                                                   const comm::Mesh& mesh) {
  auto executor = std::unique_ptr<StepExecutor>(new StepExecutor(weights, backend, mesh));
  APB_ASSIGN_OR_RETURN(executor->stream_, backend.NewStream());
  APB_ASSIGN_OR_RETURN(executor->decoder_, model::Decoder::Create(weights, backend, mesh.tensor()));
  APB_ASSIGN_OR_RETURN(executor->cache_, cache::PagedKvCache::Create(shape, backend));
  executor->batch_attention_ = std::make_unique<TokenBatchAttention>(
      *executor->cache_, backend, mesh.cp_group(),
      1.0f / std::sqrt(static_cast<float>(weights.config().head_dim)));
  if (mesh.cp_group().size() > 1)
    executor->why_not_sliced_ = executor->decoder_->EnableSlices(mesh.cp_group(), mesh.all());
  return executor;
}

bool StepExecutor::SetSliced(bool sliced) {
  most_logits_ = 0;  // logits come from other memory in the other mode
  sliced_ = sliced && why_not_sliced_.ok();
  return sliced_ == sliced;
}

namespace {
double SecondsIn(const comm::Communicator& communicator) {
  double seconds = 0;
  for (const auto& operation : communicator.stats().operations) seconds += operation.seconds;
  return seconds;
}
}  // namespace

absl::StatusOr<schedule::StepResult> StepExecutor::Execute(const schedule::StepPlan& plan) {
  schedule::StepResult result;
  for (const SequenceId id : plan.releases) APB_RETURN_IF_ERROR(Release(id));
  for (const schedule::SequenceSpec& spec : plan.admissions) APB_RETURN_IF_ERROR(Admit(spec));
  const auto start = std::chrono::steady_clock::now();
  for (const schedule::PrefillSlice& slice : plan.prefill) APB_RETURN_IF_ERROR(RunPrefill(slice));
  result.prefill_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!plan.spans.empty()) APB_RETURN_IF_ERROR(RunSpans(plan.spans, result));
  APB_RETURN_IF_ERROR(stream_->Synchronize());  // also on ranks that read no result
  return result;
}

absl::Status StepExecutor::Release(SequenceId id) {
  auto found = sequences_.find(id);
  if (found == sequences_.end())
    return absl::InternalError("the plan releases a sequence that is not here");
  Sequence& s = found->second;
  if (s.prefill != nullptr) {  // cancelled during its prefill
    APB_RETURN_IF_ERROR(s.prefill->Drop(s.kv, *stream_));
    s.prefill.reset();
    decoder_->Trim();
  }
  cache_->Release(s.kv);
  sequences_.erase(found);
  return absl::OkStatus();
}

absl::Status StepExecutor::Admit(const schedule::SequenceSpec& spec) {
  Sequence& s = sequences_[spec.id];
  s.spec = spec;
  const std::span<const int32_t> tokens = spec.tokens;
  if (mesh_.all().rank() == 0) {
    const size_t prompt = tokens.size() - spec.generated_before;
    // Only the repetition penalty reads the prompt's tokens.
    if (spec.sampling.repetition_penalty != 1.0f) s.counts.AddPrompt(tokens.first(prompt));
    for (const int32_t token : tokens.subspan(prompt)) s.counts.AddGenerated(token);
  }
  if (spec.cached_tokens == 0) return absl::OkStatus();
  auto parent = sequences_.find(spec.parent);
  if (parent == sequences_.end())
    return absl::InternalError("the plan starts from a sequence that is not here");
  APB_ASSIGN_OR_RETURN(
      s.kv, cache_->Fork(parent->second.kv, static_cast<int32_t>(spec.cached_tokens), *stream_));
  s.document_slots = s.kv.slot_count();
  return absl::OkStatus();
}

absl::Status StepExecutor::StartPrefill(const std::vector<SequenceId>& ids) {
  std::vector<PrefillDocument> documents;
  for (const SequenceId id : ids) {
    auto found = sequences_.find(id);
    if (found == sequences_.end())
      return absl::InternalError("the plan begins the prefill of a sequence that is not here");
    Sequence& s = found->second;
    APB_ASSIGN_OR_RETURN(context_parallel::ShardPlan plan,
                         schedule::PlanOf(s.spec, mesh_.cp_group().size()));
    documents.push_back({.plan = std::move(plan),
                         .tokens = std::span(s.spec.tokens).first(schedule::PrefillEnd(s.spec)),
                         .embedded_query = s.spec.embedded_query,
                         .compressor = s.spec.strategy_options.compressor,
                         .kv = &s.kv});
    if (s.spec.cached_tokens > 0)
      documents.back().compressor = {};  // behind a prefix, all is exact
  }
  const PrefillDeps deps{.decoder = *decoder_,
                         .weights = weights_,
                         .cache = *cache_,
                         .backend = backend_,
                         .communicator = mesh_.cp_group(),
                         .tensor = mesh_.tensor(),
                         .overlap_passing = overlap_passing_};
  APB_ASSIGN_OR_RETURN(const std::shared_ptr<DocumentPrefill> prefill,
                       DocumentPrefill::Start(deps, std::move(documents), *stream_));
  for (const SequenceId id : ids) {
    Sequence& s = sequences_.at(id);
    s.prefill = prefill;
    s.document_slots = s.kv.slot_count();
  }
  return absl::OkStatus();
}

absl::Status StepExecutor::RunPrefill(const schedule::PrefillSlice& slice) {
  if (slice.layer_begin == 0) APB_RETURN_IF_ERROR(StartPrefill(slice.ids));
  auto found = sequences_.find(slice.ids.at(0));
  if (found == sequences_.end() || found->second.prefill == nullptr)
    return absl::InternalError("the plan computes layers of a sequence that has no prefill");
  DocumentPrefill& prefill = *found->second.prefill;
  const model::PhaseSeconds before = decoder_->phase_seconds();
  const double waited = SecondsIn(mesh_.cp_group()), chosen = prefill.compress_seconds();
  APB_RETURN_IF_ERROR(prefill.RunLayers(slice.layer_begin, slice.layer_end, *stream_));
  APB_RETURN_IF_ERROR(stream_->Synchronize());
  const model::PhaseSeconds& after = decoder_->phase_seconds();
  const double communicate = SecondsIn(mesh_.cp_group()) - waited;
  const double choose = prefill.compress_seconds() - chosen;
  phases_.projection += after.projection - before.projection;
  phases_.compress += after.compress - before.compress + choose;
  phases_.communicate += communicate + after.communicate - before.communicate;
  // NCCL's watchdog reports a collective a little after the stream has passed it. Seconds that are
  // reported late are subtracted later, because counters must not fall.
  attend_rest_ += after.attend - before.attend - communicate - choose;
  phases_.attend += std::max(0.0, attend_rest_);
  attend_rest_ = std::min(0.0, attend_rest_);
  phases_.mlp += after.mlp - before.mlp;
  if (slice.layer_end == weights_.config().layers) {
    for (const SequenceId id : slice.ids) sequences_.at(id).prefill.reset();
    decoder_->Trim();
  }
  return absl::OkStatus();
}

absl::Status StepExecutor::RunSpans(const std::vector<schedule::TokenSpan>& spans,
                                    schedule::StepResult& result) {
  std::vector<BatchTokens> batch;
  tokens_.clear();
  for (const schedule::TokenSpan& span : spans) {
    auto found = sequences_.find(span.id);
    if (found == sequences_.end())
      return absl::InternalError("the plan runs rows of a sequence that is not here");
    batch.push_back({.kv = &found->second.kv,
                     .document_slots = found->second.document_slots,
                     .position = span.position,
                     .count = static_cast<int64_t>(span.tokens.size())});
    tokens_.insert(tokens_.end(), span.tokens.begin(), span.tokens.end());
  }
  const auto decodes = [](const schedule::TokenSpan& span) {
    return span.tokens.size() == 1 && span.sample;
  };
  if (graphs_.enabled() && spans.size() <= StepGraphs::kMaxRows &&
      std::all_of(spans.begin(), spans.end(), decodes)) {
    return Decode(spans, batch, result);
  }
  const model::ModelConfig& config = weights_.config();
  APB_ASSIGN_OR_RETURN(
      const TensorView hidden,
      hidden_.Get(config.dtype, {static_cast<int64_t>(tokens_.size()), config.hidden_size}));
  APB_RETURN_IF_ERROR(batch_attention_->Prepare(batch, *stream_, {.sliced = sliced_}));
  APB_RETURN_IF_ERROR(decoder_->Embed(tokens_, hidden, *stream_));
  APB_RETURN_IF_ERROR(decoder_->RunLayers(0, config.layers, hidden, batch_attention_->positions(),
                                          *batch_attention_, *stream_, sliced_));
  NoteLogits(
      std::count_if(spans.begin(), spans.end(), [](const auto& span) { return span.sample; }));
  return computes_logits() ? SampleSpans(spans, hidden, result) : absl::OkStatus();
}

void StepExecutor::NoteLogits(int64_t rows) {
  if (rows > most_logits_) {
    most_logits_ = rows;
    ++logits_moves_;
  }
}

int64_t StepExecutor::memory_moves() const {
  return ids_.moves() + hidden_.moves() + logits_moves_ + batch_attention_->memory_moves() +
         decoder_->row_memory_moves();
}

absl::Status StepExecutor::Decode(const std::vector<schedule::TokenSpan>& spans,
                                  const std::vector<BatchTokens>& batch,
                                  schedule::StepResult& result) {
  const int64_t count = static_cast<int64_t>(spans.size());
  int64_t slots = 0;  // bound for any rank: a token has at most one slot there
  std::vector<Sequence*> owners;
  for (const schedule::TokenSpan& span : spans) {
    slots += span.position + 1;
    owners.push_back(&sequences_.at(span.id));
  }
  const StepGraphs::Key key{.rows = StepGraphs::RowBucket(count),
                            .total_slots = StepGraphs::SlotBucket(slots),
                            .sliced = sliced_};
  const model::ModelConfig& config = weights_.config();
  APB_ASSIGN_OR_RETURN(const TensorView ids, ids_.Get(DType::kI32, {key.rows}));
  APB_ASSIGN_OR_RETURN(const TensorView hidden,
                       hidden_.Get(config.dtype, {key.rows, config.hidden_size}));
  TensorView logits;
  if (computes_logits()) {
    APB_ASSIGN_OR_RETURN(logits, logits_.Get(DType::kF32, {key.rows, config.vocab_size}));
  }
  NoteLogits(key.rows);
  // Before the graph: the inputs of this step, which the host knows.
  APB_RETURN_IF_ERROR(decoder_->CheckTokens(tokens_));
  tokens_.resize(key.rows, 0);
  backend_.Copy(TensorView::Contiguous(tokens_.data(), DType::kI32, {key.rows}), ids, *stream_);
  APB_RETURN_IF_ERROR(batch_attention_->Prepare(
      batch, *stream_,
      {.sliced = sliced_, .padding = key.rows - count, .total_slots = key.total_slots}));
  const auto moves = [this] { return memory_moves(); };
  APB_RETURN_IF_ERROR(graphs_.Run(key, moves, *stream_, [&]() -> absl::Status {
    decoder_->Embed(ids, hidden, *stream_);
    APB_RETURN_IF_ERROR(decoder_->RunLayers(0, config.layers, hidden, batch_attention_->positions(),
                                            *batch_attention_, *stream_, sliced_));
    return computes_logits() ? decoder_->Logits(hidden, logits, *stream_, sliced_)
                             : absl::OkStatus();
  }));
  return mesh_.all().rank() == 0 ? Draw(owners, logits.Rows(0, count), result) : absl::OkStatus();
}

absl::Status StepExecutor::SampleSpans(const std::vector<schedule::TokenSpan>& spans,
                                       const TensorView& hidden, schedule::StepResult& result) {
  const model::ModelConfig& config = weights_.config();
  std::vector<int64_t> last_rows;
  std::vector<Sequence*> owners;
  int64_t at = 0;
  for (const schedule::TokenSpan& span : spans) {
    at += static_cast<int64_t>(span.tokens.size());
    if (!span.sample) continue;
    last_rows.push_back(at - 1);
    owners.push_back(&sequences_.at(span.id));
  }
  const int64_t count = static_cast<int64_t>(owners.size()), vocab = config.vocab_size;
  if (count == 0) return absl::OkStatus();
  APB_ASSIGN_OR_RETURN(const TensorView chosen,
                       sampled_.Get(config.dtype, {count, config.hidden_size}));
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {  // one copy for adjacent rows
    for (end = begin + 1; end < count && last_rows[end] == last_rows[end - 1] + 1;) ++end;
    backend_.Copy(hidden.Rows(last_rows[begin], last_rows[end - 1] + 1), chosen.Rows(begin, end),
                  *stream_);
  }
  APB_ASSIGN_OR_RETURN(const TensorView logits, logits_.Get(DType::kF32, {count, vocab}));
  APB_RETURN_IF_ERROR(decoder_->Logits(chosen, logits, *stream_, sliced_));
  return mesh_.all().rank() == 0 ? Draw(owners, logits, result) : absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> StepExecutor::Observe(const std::vector<Sequence*>& owners,
                                                           const TensorView& logits) {
  std::vector<int32_t> chosen(owners.size(), -1);
  if (observer_ == nullptr) return chosen;
  std::vector<size_t> rows;
  for (size_t i = 0; i < owners.size(); ++i) {
    if (observer_->Wants(owners[i]->spec.id)) rows.push_back(i);
  }
  if (rows.empty()) return chosen;
  const int64_t vocab = logits.shape[1];
  observed_.resize(rows.size() * vocab);
  for (size_t i = 0; i < rows.size(); ++i)
    backend_.Copy(logits.Rows(rows[i], rows[i] + 1),
                  TensorView::Contiguous(observed_.data() + i * vocab, DType::kF32, {1, vocab}),
                  *stream_);
  APB_RETURN_IF_ERROR(stream_->Synchronize());
  for (size_t i = 0; i < rows.size(); ++i)
    chosen[rows[i]] =
        observer_
            ->OnLogits(owners[rows[i]]->spec.id, std::span(observed_).subspan(i * vocab, vocab))
            .value_or(-1);
  return chosen;
}

absl::Status StepExecutor::Draw(const std::vector<Sequence*>& owners, const TensorView& logits,
                                schedule::StepResult& result) {
  std::vector<sampling::SampleRequest> requests;
  for (const Sequence* s : owners) requests.push_back({s->spec.sampling, s->counts});
  // First: Sample changes the logits.
  APB_ASSIGN_OR_RETURN(const std::vector<int32_t> chosen, Observe(owners, logits));
  APB_ASSIGN_OR_RETURN(std::vector<absl::StatusOr<sampling::SampledToken>> results,
                       sampler_.Sample(requests, logits, *stream_));
  for (size_t i = 0; i < owners.size(); ++i) {
    Sequence& s = *owners[i];
    absl::StatusOr<sampling::SampledToken>& drawn = results[i];
    if (!drawn.ok()) {  // only this sequence ends
      result.failures.push_back({s.spec.id, drawn.status()});
      continue;
    }
    if (chosen[i] >= 0) drawn->token = chosen[i];
    s.counts.AddGenerated(drawn->token);
    result.tokens.push_back({s.spec.id, *std::move(drawn)});
  }
  return absl::OkStatus();
}

}  // namespace apb::executor
