// Decode steps of a whole model by the worker's executor on one rank: as recorded graphs, and
// operation by operation.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace apb::bench {

struct DecodeSteps {
  double recorded_seconds = 0;  // of a step, sampling included; 0 where the backend records nothing
  double plain_seconds = 0;
  double bytes = 0;  // weights and KV that a step must read
};

// Of `sequences` sequences, each `depth` tokens long before the first step (computed by `full`).
absl::StatusOr<DecodeSteps> MeasureDecodeSteps(const model::Weights& weights,
                                               kernels::Backend& backend, int64_t sequences,
                                               int64_t depth);

}  // namespace apb::bench
