// Times decode steps of a whole model with the engine's executor on one rank, as recorded graphs
// and operation by operation.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace apb::bench {

struct DecodeSteps {
  // Seconds of a step, sampling included. recorded_seconds is 0 if the backend records nothing.
  double recorded_seconds = 0;
  double plain_seconds = 0;
  double bytes = 0;  // weights and KV that a step must read
};

// Steps of `sequences` sequences, which have `depth` tokens before the first step (computed by
// strategy `full`).
absl::StatusOr<DecodeSteps> MeasureDecodeSteps(const model::Weights& weights,
                                               kernels::Backend& backend, int64_t sequences,
                                               int64_t depth);

}  // namespace apb::bench
