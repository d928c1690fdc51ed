// The value that every rank executes in one step: made by the leader's scheduler, sent to all
// ranks. Control flow between collectives depends on it (and on model and options) only. See
// docs/architecture.md.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/context_parallel/strategy_options.h"
#include "engine/sampling/sampling_params.h"

namespace apb::schedule {

enum class SequenceId : uint64_t {};

// Everything that ranks must know of a sequence, sent once, when it is admitted.
struct SequenceSpec {
  SequenceId id{};
  std::vector<int32_t>
      tokens;               // the whole prompt; after a preemption with the tokens generated so far
  int64_t query_begin = 0;  // document = [0, query_begin), the rest is the query (>= 1 token)
  int32_t query_insert_position = 0;
  std::vector<int32_t> embedded_query;
  std::string strategy;  // a name of the table (strategies.h): the leader has resolved `auto`
  context_parallel::StrategyOptions strategy_options;
  int64_t generated_before =
      0;  // tokens at the end of `tokens` that were generated before a preemption
  // Starts with the KV of the first cached_tokens tokens of sequence `parent`, which has ended (or
  // not: 0 tokens). Tokens [cached_tokens, prefill_end) are computed by a prefill with strategy
  // `prefix_strategy` then, of document and query alike; all the rest runs as rows.
  SequenceId parent{};
  int64_t cached_tokens = 0;
  int64_t prefill_end = 0;
  std::string prefix_strategy;
  sampling::SamplingParams sampling;
};

// Layers [layer_begin, layer_end) of the document prefill of one sequence, or of a batch of them
// that go through all layers together. Who is cancelled on the way is left out of later slices.
struct PrefillSlice {
  std::vector<SequenceId> ids;
  int32_t layer_begin = 0;
  int32_t layer_end = 0;
};

// New rows of one sequence that all ranks run together: query tokens (from the prompt) or the last
// sampled token. Row i has position `position + i`; rank (position + i) % ranks keeps its K and V,
// so that new KV is balanced. The id has no part in this: the same request must give the same
// answer again, and sums over ranks are rounded differently when rows move.
struct TokenSpan {
  SequenceId id{};
  int64_t position = 0;
  std::vector<int32_t> tokens;
  bool sample = false;  // draw a token from the last row's logits
};

struct StepPlan {
  uint64_t step = 0;
  std::vector<SequenceId>
      releases;  // executed first: frees blocks of ended and cancelled sequences
  std::vector<SequenceSpec> admissions;
  std::vector<PrefillSlice> prefill;
  std::vector<TokenSpan> spans;  // one batch
  bool collect_stats = false;    // ranks send their counters to the leader after the step
  bool shutdown = false;         // the last plan

  bool empty() const {
    return releases.empty() && admissions.empty() && prefill.empty() && spans.empty() &&
           !collect_stats && !shutdown;
  }
};

// Bytes for the wire, and back. Decode checks every length against what is left (kDataLoss).
std::string EncodeStepPlan(const StepPlan& plan);
absl::StatusOr<StepPlan> DecodeStepPlan(std::string_view bytes);

}  // namespace apb::schedule
