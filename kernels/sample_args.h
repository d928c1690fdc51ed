// Arguments of Backend::Sample: the logits of R rows give a token for each row.
#pragma once

#include <cstdint>
#include <limits>

#include "absl/status/status.h"
#include "kernels/operand_visitor.h"
#include "kernels/tensor_view.h"

namespace apb::kernels {

// How to choose the token of one row.
struct SampleRow {
  double uniform = 0;       // in [0, 1): the place of the draw in the cumulated weights
  float temperature = 1;    // <= 0: greedy
  float top_p = 1;          // >= 1: off
  float min_p = 0;          // <= 0: off
  int32_t top_k = 0;        // <= 0: off
  int32_t edits_begin = 0;  // the row's part of the list of edits
  int32_t edits_end = 0;
};

// A change of one logit before the draw (penalties, barred tokens).
struct LogitEdit {
  int32_t token = 0;   // in [0, V), at most once in a row
  float penalty = 1;   // finite, above 0: divides a positive logit, multiplies any other
  float subtract = 0;  // finite, or +inf: the token may not be drawn
};

// The order of the steps: edits, temperature, top_k, top_p (among the tokens that top_k left),
// min_p, draw. The weight of a token is exp(logit / temperature). Of equal logits the lower id
// ranks higher. top_p keeps the fewest tokens, from the best one down, that together have that
// share of the weight. min_p keeps the tokens with at least that share of the best token's weight.
// The best token always stays. The draw takes the first token, in the order of ids, at which the
// running sum of weights exceeds `uniform` times their total. A row's token does not depend on the
// other rows.
struct SampleArgs {
  TensorView logits;                 // [R, V] f32, 0 < V <= kMaxSampleVocab; the edits change it
  const SampleRow* rows = nullptr;   // [R], in memory of the backend's place
  const LogitEdit* edits = nullptr;  // [edit_count] of all rows, likewise
  int64_t edit_count = 0;
  TensorView tokens;  // out [R] i32: the token, or one of the two values below

  static constexpr const char* kName = "Sample";
  const TensorView& main() const { return logits; }
  absl::Status Check() const;
  void VisitOperands(OperandVisitor& visitor);
};
inline constexpr int32_t kBadLogit = -1;       // a logit is NaN or +inf
inline constexpr int32_t kNothingToDraw = -2;  // every logit is -inf
inline constexpr int64_t kMaxSampleVocab = int64_t{1} << 22;

// A logit after its edit. NaN and +inf stay, so that Sample finds them; no finite logit becomes
// +inf.
constexpr float Edited(float logit, const LogitEdit& edit) {
  constexpr float kHighest = std::numeric_limits<float>::max();
  if (!(logit <= kHighest)) return logit;
  const float repeated = logit > 0 ? logit / edit.penalty : logit * edit.penalty;
  const float edited = (repeated < kHighest ? repeated : kHighest) - edit.subtract;
  return edited < kHighest ? edited : kHighest;
}

}  // namespace apb::kernels
