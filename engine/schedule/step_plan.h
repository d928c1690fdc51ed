// The value that every rank executes in one step. The leader's scheduler makes it and sends the
// same bytes to all ranks. Control flow between collectives depends only on this value, the model
// and the options of the group (docs/architecture.md).
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

// All that a rank must know of a sequence; sent when it is admitted.
struct SequenceSpec {
  SequenceId id{};
  // The whole prompt; after a preemption, followed by the tokens generated so far.
  std::vector<int32_t> tokens;
  int64_t query_begin = 0;  // document: tokens [0, query_begin); query: the rest, at least 1 token
  int32_t query_insert_position = 0;    // where embedded_query goes in the anchor
  std::vector<int32_t> embedded_query;  // tokens of the question, for the anchor
  std::string strategy;  // a name of the table (strategies.h): the leader has resolved `auto`
  context_parallel::StrategyOptions strategy_options;
  int64_t generated_before = 0;  // tokens at the end of `tokens` that were generated already
  // If cached_tokens > 0, the sequence starts with the KV of the first cached_tokens tokens of
  // sequence `parent`, which has ended. A prefill with strategy `prefix_strategy` then computes
  // tokens [cached_tokens, prefill_end), of document and query alike; all later tokens run in
  // batches.
  SequenceId parent{};
  int64_t cached_tokens = 0;
  int64_t prefill_end = 0;
  std::string prefix_strategy;
  sampling::SamplingParams sampling;
};

// Layers [layer_begin, layer_end) of the document prefill of one sequence, or of a batch of
// sequences that go through all layers together. A sequence that is cancelled in between is missing
// from later slices.
struct PrefillSlice {
  std::vector<SequenceId> ids;
  int32_t layer_begin = 0;
  int32_t layer_end = 0;
};

// Consecutive tokens of one sequence that all ranks run together: query tokens of the prompt, or
// the last sampled token. Token i has position `position + i`; rank (position + i) % ranks keeps
// its K and V, so new KV is balanced. The rank does not depend on the sequence id: the same request
// must give the same answer again, and sums over ranks are rounded differently when tokens move.
struct TokenSpan {
  SequenceId id{};
  int64_t position = 0;
  std::vector<int32_t> tokens;
  bool sample = false;  // draw a token from the logits of the last token
};

struct StepPlan {
  uint64_t step = 0;
  std::vector<SequenceId> releases;  // done first: frees the blocks of these sequences
  std::vector<SequenceSpec> admissions;
  std::vector<PrefillSlice> prefill;  // at most one
  std::vector<TokenSpan> spans;       // run as one batch
  bool collect_stats = false;         // ranks send their counters to the leader after the step
  bool shutdown = false;              // this is the last plan

  bool empty() const {
    return releases.empty() && admissions.empty() && prefill.empty() && spans.empty() &&
           !collect_stats && !shutdown;
  }
};

// Converts a plan to bytes for the wire, and back. Decode checks every length against the remaining
// bytes (kDataLoss).
std::string EncodeStepPlan(const StepPlan& plan);
absl::StatusOr<StepPlan> DecodeStepPlan(std::string_view bytes);

}  // namespace apb::schedule
