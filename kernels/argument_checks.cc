#include "kernels/argument_checks.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace apb::kernels {
namespace {

std::string TypeAndShape(const TensorView& v) {
  return absl::StrCat(NameOf(v.dtype), "[",
                      absl::StrJoin(v.shape.begin(), v.shape.begin() + v.rank, ", "), "]");
}

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

// A weight in blocks is multiplied by what is computed in on a host.
bool IsWeightOf(const TensorView& x, const TensorView& weight) {
  if (!IsBlockType(weight.dtype)) return weight.dtype == x.dtype;
  return (x.dtype == DType::kF32 || x.dtype == DType::kBF16) &&
         weight.shape[1] % kBlockLength == 0 && weight.stride[0] % kBlockLength == 0;
}

absl::Status Check(bool ok, const char* operation, const TensorView& a, const TensorView& b) {
  return ok ? absl::OkStatus() : ShapeError(operation, a, b);
}

// One offset is right for both.
bool IsOneLayout(const TensorView& k_cache, const TensorView& v_cache) {
  return k_cache.rank == 4 && k_cache.shape == v_cache.shape && k_cache.stride == v_cache.stride;
}

bool RowsFitCache(const TensorView& k, const TensorView& v, const TensorView& slots,
                  const TensorView& k_cache, const TensorView& v_cache) {
  return k.rank == 3 && k.shape == v.shape && IsFloat(k.dtype) && slots.dtype == DType::kI64 &&
         slots.shape[0] == k.shape[0] && IsOneLayout(k_cache, v_cache) &&
         k_cache.shape[1] == k.shape[1] && k_cache.shape[3] == k.shape[2] && k.dtype == v.dtype &&
         k.dtype == k_cache.dtype && k.dtype == v_cache.dtype;
}

}  // namespace

absl::Status ShapeError(const char* operation, const TensorView& a, const TensorView& b) {
  return absl::InternalError(absl::StrCat(
      operation, ": shapes or types do not fit: ", TypeAndShape(a), " and ", TypeAndShape(b)));
}

absl::Status CheckCopy(const TensorView& source, const TensorView& target) {
  return Check(source.rank == target.rank && source.shape == target.shape &&
                   source.dtype == target.dtype && !IsBlockType(source.dtype),
               "Copy", source, target);
}

absl::Status CheckEmbedding(const TensorView& table, const TensorView& ids, const TensorView& out) {
  return Check(table.rank == 2 && IsFloat(table.dtype) && ids.dtype == DType::kI32 &&
                   out.rank == 2 && out.dtype == table.dtype && out.shape[0] == ids.shape[0] &&
                   out.shape[1] == table.shape[1],
               "Embedding", table, out);
}

absl::Status CheckRmsNorm(const TensorView& x, const TensorView& weight, const TensorView& out) {
  return Check((x.rank == 2 || x.rank == 3) && IsFloat(x.dtype) && x.shape == out.shape &&
                   x.dtype == out.dtype && weight.dtype == x.dtype &&
                   weight.shape[0] == x.shape[x.rank - 1],
               "RmsNorm", x, weight);
}

absl::Status CheckLinear(const LinearArgs& a) {
  return Check(a.x.rank == 2 && a.weight.rank == 2 && a.out.rank == 2 && IsFloat(a.x.dtype) &&
                   IsWeightOf(a.x, a.weight) &&
                   (a.out.dtype == a.x.dtype || a.out.dtype == DType::kF32) &&
                   a.x.shape[1] == a.weight.shape[1] && a.out.shape[0] == a.x.shape[0] &&
                   a.out.shape[1] == a.weight.shape[0] &&
                   (!a.bias.present() ||
                    (a.bias.shape[0] == a.weight.shape[0] && a.bias.dtype == a.x.dtype)),
               "Linear", a.x, a.weight);
}

absl::Status CheckRope(const RopeArgs& a) {
  absl::Status status =
      Check(a.x.rank == 3 && IsFloat(a.x.dtype) &&
                (a.inv_freq.shape[0] == 0 ||
                 (a.positions.dtype == DType::kI32 && a.positions.shape[0] == a.x.shape[0])) &&
                2 * a.inv_freq.shape[0] <= a.x.shape[2] && a.inv_freq.shape[0] <= 128,
            "Rope", a.x, a.inv_freq);
  if (!status.ok() || !a.store.slots.present()) return status;
  const bool fits = a.v.rank == 3 && a.v.shape[0] == a.x.shape[0] && a.v.shape[1] <= a.x.shape[1] &&
                    a.store_begin >= 0 && a.store_begin <= a.x.shape[0];
  return Check(fits && RowsFitCache(a.keys().Rows(a.store_begin, a.x.shape[0]),
                                    a.v.Rows(a.store_begin, a.x.shape[0]), a.store.slots,
                                    a.store.k_cache, a.store.v_cache),
               "Rope: store", a.v, a.store.k_cache);
}

absl::Status CheckSiluMul(const TensorView& gate, const TensorView& up, const TensorView& out) {
  return Check(gate.rank == 2 && IsFloat(out.dtype) && gate.shape == out.shape &&
                   (gate.dtype == out.dtype || gate.dtype == DType::kF32) &&
                   (!up.present() || (up.shape == gate.shape && up.dtype == gate.dtype)),
               "SiluMul", gate, out);
}

absl::Status CheckAccumulate(const TensorView& x, const TensorView& out) {
  return Check(x.rank == 2 && x.dtype == DType::kF32 && IsFloat(out.dtype) && x.shape == out.shape,
               "Accumulate", x, out);
}

absl::Status CheckAttention(const AttentionArgs& a) {
  bool ok = a.q.rank == 3 && IsFloat(a.q.dtype) && a.out.shape == a.q.shape &&
            (a.out.dtype == a.q.dtype || a.out.dtype == DType::kF32) && a.q.shape[2] <= 256 &&
            a.q_positions.dtype == DType::kI32 && a.q_positions.shape[0] == a.q.shape[0] &&
            a.group_split >= 0 && a.group_split <= a.q.shape[0];
  int64_t kv_heads = 0;
  for (const KeySegment& s : a.keys) {
    if (s.k.shape[0] == 0) continue;
    if (kv_heads == 0) kv_heads = s.k.shape[1];
    const bool causal = s.visible_to_group[0] == Visibility::kCausal ||
                        s.visible_to_group[1] == Visibility::kCausal;
    ok = ok && s.k.rank == 3 && s.k.shape == s.v.shape && s.k.dtype == a.q.dtype &&
         s.v.dtype == a.q.dtype && s.k.shape[1] == kv_heads && s.k.shape[2] == a.q.shape[2] &&
         kv_heads > 0 && a.q.shape[1] % kv_heads == 0 && a.q.shape[1] / kv_heads <= 128 &&
         (!causal || (s.positions.present() && s.positions.shape[0] == s.k.shape[0]));
  }
  return Check(ok, "Attention", a.q, a.keys.empty() ? a.q : a.keys[0].k);
}

absl::Status CheckPagedAttention(const PagedAttentionArgs& a) {
  bool ok = a.q.rank == 3 && IsFloat(a.q.dtype) && a.out.shape == a.q.shape &&
            IsOneLayout(a.k_cache, a.v_cache) && a.k_cache.dtype == a.q.dtype &&
            a.v_cache.dtype == a.q.dtype &&
            (a.out.dtype == a.q.dtype || a.out.dtype == DType::kF32) &&
            a.k_cache.shape[3] == a.q.shape[2] && a.q.shape[2] <= 256 &&
            a.q.shape[1] % a.k_cache.shape[1] == 0 && a.q.shape[1] / a.k_cache.shape[1] <= 128;
  ok = ok && (a.sequences != nullptr || a.rows.empty()) && a.total_slots >= 0;
  for (const PagedRows& rows : a.rows)
    ok = ok && rows.begin >= 0 && rows.count >= 0 && rows.begin + rows.count <= a.q.shape[0];
  return Check(ok, "PagedAttention", a.q, a.k_cache);
}

absl::Status CheckMergePartials(const TensorView& outs, const TensorView& lses,
                                const TensorView& out) {
  return Check(outs.rank == 4 && lses.rank == 3 && out.rank == 3 && outs.dtype == DType::kF32 &&
                   lses.dtype == DType::kF32 && IsFloat(out.dtype) &&
                   out.shape[0] == outs.shape[1] && out.shape[1] == outs.shape[2] &&
                   out.shape[2] == outs.shape[3] && outs.shape[3] <= 256,
               "MergePartials", outs, out);
}

absl::Status CheckReadFromCache(const TensorView& k, const TensorView& v, const TensorView& slots,
                                const TensorView& k_cache, const TensorView& v_cache) {
  return Check(RowsFitCache(k, v, slots, k_cache, v_cache), "ReadFromCache", k, k_cache);
}

absl::Status CheckMaxPoolRows(const TensorView& scores, int window, const TensorView& out) {
  return Check(scores.rank == 2 && scores.shape == out.shape && scores.dtype == DType::kF32 &&
                   out.dtype == DType::kF32 && window > 0 && window % 2 == 1,
               "MaxPoolRows", scores, out);
}

absl::Status CheckKeyScores(const KeyScoreArgs& a) {
  return Check(a.k.rank == 3 && a.query.rank == 3 && IsFloat(a.k.dtype) &&
                   a.k.dtype == a.query.dtype && a.scores.dtype == DType::kF32 &&
                   a.k.shape[2] <= 256 && a.query.shape[2] == a.k.shape[2] &&
                   a.query.shape[1] % a.k.shape[1] == 0 && a.scores.shape[0] == a.k.shape[0] &&
                   a.scores.shape[1] == a.k.shape[1],
               "KeyScores", a.k, a.query);
}

absl::Status CheckTopKPerHead(const TopKPerHeadArgs& a) {
  return Check(a.scores.rank == 2 && a.scores.dtype == DType::kF32 &&
                   a.indices.dtype == DType::kI32 && a.eligible_begin >= 0 &&
                   a.eligible_end <= a.scores.shape[0] && a.count >= 0 &&
                   a.count <= a.eligible_end - a.eligible_begin &&
                   a.indices.shape[0] == a.scores.shape[1] && a.indices.shape[1] == a.count,
               "TopKPerHead", a.scores, a.indices);
}

absl::Status CheckGatherRowsPerHead(const TensorView& x, const TensorView& indices,
                                    const TensorView& out) {
  return Check(x.rank == 3 && IsFloat(x.dtype) && indices.rank == 2 &&
                   indices.dtype == DType::kI32 && out.rank == 3 && out.dtype == x.dtype &&
                   indices.shape[0] == x.shape[1] && out.shape[0] == indices.shape[1] &&
                   out.shape[1] == x.shape[1] && out.shape[2] == x.shape[2],
               "GatherRowsPerHead", x, out);
}

absl::Status CheckSample(const SampleArgs& a) {
  return Check(a.logits.rank == 2 && a.logits.dtype == DType::kF32 && a.logits.shape[1] > 0 &&
                   a.logits.shape[1] <= kMaxSampleVocab && a.tokens.rank == 1 &&
                   a.tokens.dtype == DType::kI32 && a.tokens.shape[0] == a.logits.shape[0] &&
                   (a.rows != nullptr || a.logits.shape[0] == 0) && a.edit_count >= 0 &&
                   (a.edits != nullptr || a.edit_count == 0),
               "Sample", a.logits, a.tokens);
}

}  // namespace apb::kernels
