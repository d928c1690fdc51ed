// What every backend asks of an operation's operands, so that all of them refuse alike. OK, or
// kInternal with the operation and the shapes: callers have checked what comes from outside.
#pragma once

#include "absl/status/status.h"
#include "kernels/backend.h"

namespace apb::kernels {

absl::Status CheckCopy(const TensorView& source, const TensorView& target);
// Not the ids themselves, which may be on a device.
absl::Status CheckEmbedding(const TensorView& table, const TensorView& ids, const TensorView& out);
absl::Status CheckRmsNorm(const TensorView& x, const TensorView& weight, const TensorView& out);
absl::Status CheckLinear(const LinearArgs& args);
absl::Status CheckRope(const RopeArgs& args);
absl::Status CheckSiluMul(const TensorView& gate, const TensorView& up, const TensorView& out);
absl::Status CheckAccumulate(const TensorView& x, const TensorView& out);
absl::Status CheckAttention(const AttentionArgs& args);
absl::Status CheckPagedAttention(const PagedAttentionArgs& args);
absl::Status CheckMergePartials(const TensorView& outs, const TensorView& lses,
                                const TensorView& out);
absl::Status CheckReadFromCache(const TensorView& k, const TensorView& v, const TensorView& slots,
                                const TensorView& k_cache, const TensorView& v_cache);
absl::Status CheckMaxPoolRows(const TensorView& scores, int window, const TensorView& out);
absl::Status CheckKeyScores(const KeyScoreArgs& args);
absl::Status CheckTopKPerHead(const TopKPerHeadArgs& args);
absl::Status CheckGatherRowsPerHead(const TensorView& x, const TensorView& indices,
                                    const TensorView& out);
// Not what lies in backend memory: rows and edits.
absl::Status CheckSample(const SampleArgs& args);

// The error of a check that did not hold, naming two operands.
absl::Status ShapeError(const char* operation, const TensorView& a, const TensorView& b);

}  // namespace apb::kernels
