// Arguments of Backend::Sample: logits of R rows -> a token for each.
#pragma once

#include <cstdint>
#include <limits>

#include "absl/status/status.h"
#include "kernels/operand_visitor.h"
#include "kernels/tensor_view.h"

namespace apb::kernels {

// How the token of a row is chosen.
struct SampleRow {
  double uniform = 0;       // in [0, 1): where in the cumulated weights the draw falls
  float temperature = 1;    // <= 0: greedy
  float top_p = 1;          // >= 1: off
  float min_p = 0;          // <= 0: off
  int32_t top_k = 0;        // <= 0: off
  int32_t edits_begin = 0;  // its part of the list of edits
  int32_t edits_end = 0;
};

// A change of one logit before the draw (penalties, barred tokens).
struct LogitEdit {
  int32_t token = 0;   // in [0, V), at most once in a row
  float penalty = 1;   // finite, above 0: a positive logit is divided by it, another one multiplied
  float subtract = 0;  // finite, or +inf: the token may not be drawn
};

// The order of the steps: edits, temperature, top_k, top_p (of what top_k left), min_p, draw. The
// weight of a token is exp(logit / temperature). Of equal logits the lower id is the better one.
// top_p keeps the fewest best tokens that together have that share of the weight, min_p those with
// at least that part of the best one's weight; the best one stays in any case. Drawn is the first
// token, in the order of ids, where the running sum of weights exceeds `uniform` of their total.
// The same operands give the same tokens, whatever rows are beside them.
struct SampleArgs {
  TensorView logits;                 // [R, V] f32, 0 < V <= kMaxSampleVocab; the edits change it
  const SampleRow* rows = nullptr;   // [R], backend memory
  const LogitEdit* edits = nullptr;  // [edit_count], backend memory; of all rows
  int64_t edit_count = 0;
  TensorView tokens;  // out [R] i32: the token, or one of the two below

  static constexpr const char* kName = "Sample";
  const TensorView& main() const { return logits; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};
inline constexpr int32_t kBadLogit = -1;       // a logit is NaN or +inf
inline constexpr int32_t kNothingToDraw = -2;  // every logit is -inf
inline constexpr int64_t kMaxSampleVocab = int64_t{1} << 22;

// A logit after its edit. What is NaN or +inf stays so, to be found; nothing else becomes it.
constexpr float Edited(float logit, const LogitEdit& edit) {
  constexpr float kHighest = std::numeric_limits<float>::max();
  if (!(logit <= kHighest)) return logit;
  const float repeated = logit > 0 ? logit / edit.penalty : logit * edit.penalty;
  const float edited = (repeated < kHighest ? repeated : kHighest) - edit.subtract;
  return edited < kHighest ? edited : kHighest;
}

}  // namespace apb::kernels
