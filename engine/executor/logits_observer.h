// Sees the distributions that answers are drawn from, and may choose the tokens itself: how an
// approximate answer is compared with the exact one (worker/fidelity_meter.h, tests/bench).
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "engine/schedule/step_plan.h"

namespace apb::executor {

// Called on rank 0, by the thread that executes steps.
class LogitsObserver {
 public:
  virtual ~LogitsObserver() = default;
  // Whether OnLogits is called for the next token of this sequence; copying its logits costs a few
  // bytes of PCIe for each token of the vocabulary.
  virtual bool Wants(schedule::SequenceId id) = 0;
  // `logits` [V] f32, raw: before penalties and temperature; valid during the call. A token that is
  // returned is the sequence's next one, instead of the drawn one.
  virtual std::optional<int32_t> OnLogits(schedule::SequenceId id,
                                          std::span<const float> logits) = 0;
};

}  // namespace apb::executor
