// What a step gave the scheduler (StepResult), and what the scheduler tells the leader about its
// sequences (Event). Every submitted sequence has exactly one end
// event, and no event follows it.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "engine/sampling/sampling_params.h"
#include "engine/schedule/step_plan.h"

namespace apb::schedule {

// A sequence has one more token.
struct TokenEvent {
  SequenceId id{};
  sampling::SampledToken sampled;
};

// How far a prefill is, for clients that asked for it.
struct ProgressEvent {
  SequenceId id{};
  int64_t processed_tokens = 0;  // of the prompt, the cached ones included
  int64_t total_tokens = 0;      // of the prompt
  int64_t cached_tokens = 0;     // of the prompt
  double elapsed_seconds = 0;    // since the sequence was admitted
  double eta_seconds = 0;        // until the prefill is done; 0 while unknown
  double queue_seconds = 0;
  std::string strategy;
};

enum class EndReason { kStopToken, kLength, kCancelled, kRejected, kFailed };

struct EndEvent {
  SequenceId id{};
  EndReason reason = EndReason::kLength;
  absl::Status status;        // not OK for kRejected and kFailed only
  int64_t cached_tokens = 0;  // of the prompt
  double queue_seconds = 0;
  double prefill_seconds = 0;  // from admission to the first token, or to an earlier end
  double decode_seconds = 0;   // from the first token to the end
  std::string strategy;
};

using Event = std::variant<TokenEvent, ProgressEvent, EndEvent>;

// A sequence whose next token could not be drawn.
struct SequenceFailure {
  SequenceId id{};
  absl::Status status;
};

// What executing a plan gave.
struct StepResult {
  std::vector<TokenEvent> tokens;
  std::vector<SequenceFailure> failures;  // these sequences end; the others go on
  double prefill_seconds = 0;             // time of the plan's slice of layers
};

}  // namespace apb::schedule
