#include "engine/schedule/scheduler.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/context_parallel/strategies.h"

namespace apb::schedule {

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), ledger_(options.ranks, options.blocks_per_rank, options.prefix_cache) {}

// ---- admission ----

void Scheduler::Submit(Request request, absl::Time now) {
  const SequenceId id = request.spec.id;
  if (sequences_.contains(id) || ledger_.prefixes().contains(id))
    return Reject(id, absl::InvalidArgumentError("this sequence id is in use"));
  const int64_t tokens = static_cast<int64_t>(request.spec.tokens.size());
  if (waiting() >= options_.max_waiting ||
      (waiting() > 0 && waiting_tokens_ + tokens > options_.max_waiting_tokens)) {
    return Reject(id, absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", waiting(),
                                                                " requests with ", waiting_tokens_,
                                                                " tokens wait")));
  }
  if (absl::Status status = CheckContext(request); !status.ok()) return Reject(id, status);
  Sequence s;
  s.request = std::move(request);
  s.submitted = now;
  absl::StatusOr<KvLayout> layout = ResolveRequest(options_, s.request);
  if (!layout.ok()) return Reject(id, layout.status());
  s.uncached_layout = *std::move(layout);
  // The pin holds the context for this request even if the context is cancelled while the request
  // waits.
  if (s.request.context.has_value()) ledger_.Pin(*s.request.context);
  waiting_tokens_ += tokens;
  waiting_.push_back(id);
  sequences_.emplace(id, std::move(s));
}

absl::Status Scheduler::CheckContext(const Request& request) const {
  if (request.keep && request.spec.sampling.max_tokens != 0)
    return absl::InvalidArgumentError("a prompt that is kept as a context generates no tokens");
  if (!request.context.has_value()) return absl::OkStatus();
  if (ledger_.prefixes().kept(*request.context) == nullptr)
    return absl::NotFoundError("the context is not kept here any more; create it again");
  return absl::OkStatus();
}

void Scheduler::Reject(SequenceId id, absl::Status status) {
  events_.emplace_back(
      EndEvent{.id = id, .reason = EndReason::kRejected, .status = std::move(status)});
}

int64_t Scheduler::BlocksFor(const Sequence& s, int rank, int64_t length) const {
  const int64_t all =
      (s.layout.Count(rank, length) + options_.block_size - 1) / options_.block_size;
  return all - (s.shared_blocks.empty() ? 0 : s.shared_blocks[rank]);
}

bool Scheduler::Grow(Sequence& s, int64_t length) {
  std::vector<int64_t> wanted(options_.ranks);
  for (int r = 0; r < options_.ranks; ++r) wanted[r] = BlocksFor(s, r, length);
  return ledger_.Take(s.request.spec.id, wanted);
}

void Scheduler::ReleaseBlocks(Sequence& s) {
  if (ledger_.Release(s.request.spec.id)) DropParent(s);
}

bool Scheduler::TakeBlocks(Sequence& s) {
  const int64_t length = static_cast<int64_t>(s.request.spec.tokens.size()) + 1;
  UsePrefix(s, /*search=*/true);
  if (Grow(s, length)) return true;
  DropParent(s);
  // If nothing runs that would release blocks, the prefix that was found may hold the missing ones,
  // of which the prompt uses only a part: give it up.
  UsePrefix(s, /*search=*/false);
  if (running() == 0 && Grow(s, length)) return true;
  DropParent(s);
  return false;
}

void Scheduler::JoinBatch(Sequence& s, std::map<std::string, Batch>& open) {
  const SequenceSpec& spec = s.request.spec;
  const std::string& strategy = spec.cached_tokens > 0 ? spec.prefix_strategy : spec.strategy;
  const context_parallel::StrategyInfo* info = context_parallel::FindStrategy(strategy);
  const bool can_batch =
      info != nullptr && info->can_batch;  // null: there is no prefill behind the prefix
  Batch& batch = open[strategy];
  if (batch.number == 0 || !can_batch ||
      batch.tokens + s.document_tokens > options_.prefill_batch_tokens) {
    batch = {.number = next_batch_++};
  }
  s.batch = batch.number;
  batch.tokens += s.document_tokens;
}

void Scheduler::Admit(StepPlan& plan, absl::Time now) {
  std::map<std::string, Batch> open;
  // First come, first served, so that small requests cannot overtake a large one for ever.
  while (!waiting_.empty()) {
    Sequence& s = sequences_.at(waiting_.front());
    const SequenceSpec& spec = s.request.spec;
    if (!TakeBlocks(s)) {
      if (running() > 0 && FitsBesideContexts(s)) return;
      RejectForRoom(s, now);
      continue;
    }
    waiting_.pop_front();
    waiting_tokens_ -= static_cast<int64_t>(spec.tokens.size());
    const bool prefills = s.document_tokens > 0;
    s.state = prefills ? State::kPrefill : State::kQuery;
    s.layers_done = prefills ? 0 : options_.layers;
    s.next_position = PrefillEnd(spec);
    if (prefills) JoinBatch(s, open);
    if (s.generated == 0) s.cached_tokens = spec.cached_tokens;
    if (spec.cached_tokens > 0 && s.request.report_progress) Progress(s, now);
    s.admitted = next_admission_++;
    if (s.queue_seconds < 0) {
      s.queue_seconds = absl::ToDoubleSeconds(now - s.submitted);
      s.prefill_begin = now;
    }
    plan.admissions.push_back(spec);
  }
}

bool Scheduler::FitsBesideContexts(const Sequence& s) const {
  const int64_t length = static_cast<int64_t>(s.request.spec.tokens.size()) + 1;
  for (int r = 0; r < options_.ranks; ++r) {
    const int64_t held = ledger_.kept_beside(r, s.request.context);
    if (BlocksFor(s, r, length) + held > options_.blocks_per_rank) return false;
  }
  return true;
}

// Only contexts can be in the way: ResolveRequest rejects every request that would not fit alone.
void Scheduler::RejectForRoom(Sequence& s, absl::Time now) {
  if (s.generated > 0)
    return End(s, EndReason::kLength, now);  // preempted: its answer ends where the cache does
  int64_t needed = 0, held = 0;
  for (int r = 0; r < options_.ranks; ++r) {
    const int64_t length = static_cast<int64_t>(s.request.spec.tokens.size()) + 1;
    needed = std::max(needed, BlocksFor(s, r, length));
    held = std::max(held, ledger_.kept_beside(r, s.request.context));
  }
  End(s, EndReason::kRejected, now,
      absl::ResourceExhaustedError(
          absl::StrCat("the request needs room for ", needed * options_.block_size,
                       " tokens on a rank, and contexts hold ", held * options_.block_size,
                       " of the ", options_.blocks_per_rank * options_.block_size,
                       " there; delete a context, or let one expire")));
}

// ---- steps ----

StepPlan Scheduler::NextStep(absl::Time now) {
  StepPlan plan;
  plan.step = next_step_++;
  AddDecodeTokens(plan, now);
  Admit(plan, now);
  plan.releases = ledger_.TakeReleases();  // last, as both lines above may preempt and evict
  AddQueryTokens(plan);
  AddPrefillSlice(plan, now);
  return plan;
}

Scheduler::Sequence* Scheduler::YoungestDecoding() {
  Sequence* youngest = nullptr;
  for (auto& [id, s] : sequences_) {
    if (s.state == State::kDecode && (youngest == nullptr || s.admitted > youngest->admitted))
      youngest = &s;
  }
  return youngest;
}

void Scheduler::AddDecodeTokens(StepPlan& plan, absl::Time now) {
  std::vector<Sequence*> decoding;
  for (auto& [id, s] : sequences_) {
    if (s.state == State::kDecode) decoding.push_back(&s);
  }
  std::sort(decoding.begin(), decoding.end(),
            [](const Sequence* a, const Sequence* b) { return a->admitted < b->admitted; });
  for (Sequence* s : decoding) {
    if (s->state != State::kDecode ||
        static_cast<int64_t>(plan.spans.size()) >= options_.max_batch_tokens)
      continue;
    bool preempted_itself = false;
    while (!Grow(*s, s->next_position + 1)) {
      Sequence* victim = YoungestDecoding();
      Preempt(*victim, now);
      if (victim == s) {
        preempted_itself = true;
        break;
      }
    }
    if (preempted_itself) continue;
    plan.spans.push_back({.id = s->request.spec.id,
                          .position = s->next_position,
                          .tokens = {s->last_token},
                          .sample = true});
  }
}

void Scheduler::Preempt(Sequence& s, absl::Time) {
  ++preemptions_;
  ReleaseBlocks(s);
  // The tokens so far become part of the prompt that is computed again.
  s.request.spec.tokens.push_back(s.last_token);
  s.request.spec.generated_before = s.generated;
  s.state = State::kWaiting;
  waiting_.push_front(s.request.spec.id);
  waiting_tokens_ += static_cast<int64_t>(s.request.spec.tokens.size());
}

void Scheduler::AddQueryTokens(StepPlan& plan) {
  int64_t room = options_.max_batch_tokens - static_cast<int64_t>(plan.spans.size());
  for (auto& [id, s] : sequences_) {
    if (s.state != State::kQuery || room <= 0) continue;
    const std::vector<int32_t>& tokens = s.request.spec.tokens;
    const int64_t count = std::min(room, static_cast<int64_t>(tokens.size()) - s.next_position);
    TokenSpan span{.id = id, .position = s.next_position};
    span.tokens.assign(tokens.begin() + s.next_position, tokens.begin() + s.next_position + count);
    span.sample = s.next_position + count == static_cast<int64_t>(tokens.size()) &&
                  s.request.spec.sampling.max_tokens > s.generated;
    plan.spans.push_back(std::move(span));
    room -= count;
  }
}

void Scheduler::AddPrefillSlice(StepPlan& plan, absl::Time now) {
  std::map<uint64_t, int64_t> batch_tokens;
  for (const auto& [id, s] : sequences_) {
    if (s.state == State::kPrefill) batch_tokens[s.batch] += s.document_tokens;
  }
  const Sequence* chosen = nullptr;
  double least_work = 0;
  for (const auto& [id, s] : sequences_) {
    if (s.state != State::kPrefill) continue;
    const double left = static_cast<double>(batch_tokens[s.batch]) *
                        (options_.layers - s.layers_done) / options_.layers;
    const double work = left - kAgingTokensPerSecond * absl::ToDoubleSeconds(now - s.submitted);
    if (chosen == nullptr || work < least_work) {
      chosen = &s;
      least_work = work;
    }
  }
  if (chosen == nullptr) return;
  const double target =
      plan.spans.empty() ? options_.slice_seconds_idle : options_.slice_seconds_busy;
  // Seconds per layer: measured on this prefill, else estimated from earlier ones, else unknown
  // (then the slice is one layer).
  double layer_seconds =
      chosen->layers_done > 0
          ? chosen->prefill_seconds_spent / chosen->layers_done
          : seconds_per_token_layer_ * static_cast<double>(batch_tokens[chosen->batch]);
  int32_t layers =
      layer_seconds > 0
          ? static_cast<int32_t>(std::min<double>(target / layer_seconds, options_.layers))
          : 1;
  layers = std::clamp(layers, 1, options_.layers - chosen->layers_done);
  PrefillSlice slice{.layer_begin = chosen->layers_done, .layer_end = chosen->layers_done + layers};
  for (const auto& [id, s] : sequences_) {
    if (s.state == State::kPrefill && s.batch == chosen->batch) slice.ids.push_back(id);
  }
  plan.prefill.push_back(std::move(slice));
}

// ---- results ----

void Scheduler::Complete(const StepPlan& plan, const StepResult& result, absl::Time now) {
  for (const PrefillSlice& slice : plan.prefill) OnPrefillDone(slice, result.prefill_seconds, now);
  for (const TokenSpan& span : plan.spans) {
    auto found = sequences_.find(span.id);
    if (found == sequences_.end()) continue;  // cancelled meanwhile
    Sequence& s = found->second;
    s.next_position = span.position + static_cast<int64_t>(span.tokens.size());
    if (s.state == State::kQuery)
      prompt_tokens_computed_ += static_cast<int64_t>(span.tokens.size());
    const bool query_done = s.state == State::kQuery &&
                            s.next_position == static_cast<int64_t>(s.request.spec.tokens.size());
    if (query_done && !span.sample)
      End(s, EndReason::kLength, now);  // max_tokens = 0: only the prompt was wanted
  }
  for (const TokenEvent& event : result.tokens) {
    auto found = sequences_.find(event.id);
    if (found != sequences_.end()) OnToken(found->second, event, now);
  }
  for (const SequenceFailure& failure : result.failures) {
    auto found = sequences_.find(failure.id);
    if (found != sequences_.end()) End(found->second, EndReason::kFailed, now, failure.status);
  }
}

void Scheduler::OnPrefillDone(const PrefillSlice& slice, double seconds, absl::Time now) {
  const int32_t layers = slice.layer_end - slice.layer_begin;
  int64_t tokens = 0;
  for (const SequenceId id : slice.ids) {
    auto found = sequences_.find(id);
    if (found == sequences_.end()) continue;  // cancelled meanwhile
    Sequence& s = found->second;
    s.layers_done = slice.layer_end;
    s.prefill_seconds_spent += seconds;
    tokens += s.document_tokens;
    if (s.layers_done == options_.layers) s.state = State::kQuery;
    if (s.request.report_progress) Progress(s, now);
  }
  if (tokens == 0) return;
  const double sample = seconds / (layers * static_cast<double>(tokens));
  seconds_per_token_layer_ =
      seconds_per_token_layer_ == 0 ? sample : 0.7 * seconds_per_token_layer_ + 0.3 * sample;
  // The tokens done so far minus those done before, so that the slices of a prefill add up to all
  // of its tokens.
  prompt_tokens_computed_ +=
      tokens * slice.layer_end / options_.layers - tokens * slice.layer_begin / options_.layers;
}

void Scheduler::Progress(Sequence& s, absl::Time now) {
  const bool done = s.layers_done == options_.layers;  // true without a prefill, too
  if (!done && now - s.last_progress < absl::Milliseconds(250)) return;
  s.last_progress = now;
  const double share = static_cast<double>(s.layers_done) / options_.layers;
  const double computed = share * static_cast<double>(s.document_tokens);
  const double elapsed = absl::ToDoubleSeconds(now - s.prefill_begin);
  events_.emplace_back(ProgressEvent{
      .id = s.request.spec.id,
      .processed_tokens = s.request.spec.cached_tokens + static_cast<int64_t>(computed),
      .total_tokens = static_cast<int64_t>(s.request.spec.tokens.size()),
      .cached_tokens = s.cached_tokens,
      .elapsed_seconds = elapsed,
      .eta_seconds = share > 0 ? elapsed / share * (1 - share) : 0,
      .queue_seconds = std::max(0.0, s.queue_seconds),
      .strategy = s.request.spec.strategy});
}

void Scheduler::OnToken(Sequence& s, const TokenEvent& event, absl::Time now) {
  const int32_t token = event.sampled.token;
  const SequenceSpec& spec = s.request.spec;
  if (s.state == State::kQuery) {
    s.state = State::kDecode;
    if (s.prefill_seconds < 0) {
      s.prefill_seconds = absl::ToDoubleSeconds(now - s.prefill_begin);
      s.first_token = now;
    }
  } else {
    s.request.spec.tokens.push_back(s.last_token);
  }
  s.last_token = token;
  ++s.generated;
  const auto& stops = spec.sampling.stop_tokens;
  const bool stop = std::find(stops.begin(), stops.end(), token) != stops.end();
  events_.emplace_back(event);
  if (stop) {
    End(s, EndReason::kStopToken, now);
  } else if (s.generated >= spec.sampling.max_tokens) {
    End(s, EndReason::kLength, now);
  }
}

void Scheduler::End(Sequence& s, EndReason reason, absl::Time now, absl::Status status) {
  const SequenceId id = s.request.spec.id;
  const double queued =
      s.queue_seconds >= 0 ? s.queue_seconds : absl::ToDoubleSeconds(now - s.submitted);
  EndEvent event{.id = id,
                 .reason = reason,
                 .status = std::move(status),
                 .cached_tokens = s.cached_tokens,
                 .queue_seconds = std::max(0.0, queued),
                 .strategy = s.request.spec.strategy};
  if (s.prefill_seconds >= 0) {
    event.prefill_seconds = s.prefill_seconds;
    event.decode_seconds = absl::ToDoubleSeconds(now - s.first_token);
  } else if (s.queue_seconds >= 0) {
    event.prefill_seconds = absl::ToDoubleSeconds(now - s.prefill_begin);
  }
  events_.emplace_back(std::move(event));
  if (s.state == State::kWaiting) {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), id));
    waiting_tokens_ -= static_cast<int64_t>(s.request.spec.tokens.size());
  }
  const bool kept = s.request.keep && reason == EndReason::kLength;
  if (reason == EndReason::kFailed || !KeepAsPrefix(s, kept)) ReleaseBlocks(s);
  const std::optional<SequenceId> context = s.request.context;
  sequences_.erase(id);
  if (context.has_value()) ledger_.Unpin(*context);
}

void Scheduler::Cancel(SequenceId id, absl::Time now) {
  auto found = sequences_.find(id);
  if (found != sequences_.end()) return End(found->second, EndReason::kCancelled, now);
  ledger_.Unkeep(id);
}

std::vector<Event> Scheduler::TakeEvents() { return std::exchange(events_, {}); }

}  // namespace apb::schedule
