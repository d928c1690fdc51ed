// The checks of operations, and the order in which they show their operands.
#include "kernels/operations.h"

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

// Weights in blocks are multiplied by the types that the CPU backend computes in.
bool IsWeightOf(const TensorView& x, const TensorView& weight) {
  if (!IsBlockType(weight.dtype)) return weight.dtype == x.dtype;
  return (x.dtype == DType::kF32 || x.dtype == DType::kBF16) &&
         weight.shape[1] % kBlockLength == 0 && weight.stride[0] % kBlockLength == 0;
}

absl::Status CheckThat(bool ok, const char* operation, const TensorView& a, const TensorView& b) {
  return ok ? absl::OkStatus() : ShapeError(operation, a, b);
}

// Whether an element offset in one cache is right for the other.
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

OperandVisitor::OperandVisitor() = default;

void OperandVisitor::Sequences(PagedAttentionArgs& args) {
  Reads(args.sequences, static_cast<int64_t>(args.rows.size()));
}
std::span<KeySegment> OperandVisitor::Own(std::span<const KeySegment>& keys) {
  keys_.assign(keys.begin(), keys.end());
  keys = keys_;
  return keys_;
}
void OperandVisitor::Own(std::span<const PagedRows>& rows) {
  rows_.assign(rows.begin(), rows.end());
  rows = rows_;
}

absl::Status ShapeError(const char* operation, const TensorView& a, const TensorView& b) {
  return absl::InternalError(absl::StrCat(
      operation, ": shapes or types do not fit: ", TypeAndShape(a), " and ", TypeAndShape(b)));
}

absl::Status CopyArgs::Check() const {
  return CheckThat(source.rank == target.rank && source.shape == target.shape &&
                       source.dtype == target.dtype && !IsBlockType(source.dtype),
                   kName, source, target);
}
void CopyArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(source);
  visitor.Writes(target);
}

absl::Status EmbeddingArgs::Check() const {
  return CheckThat(table.rank == 2 && IsFloat(table.dtype) && ids.dtype == DType::kI32 &&
                       out.rank == 2 && out.dtype == table.dtype && out.shape[0] == ids.shape[0] &&
                       out.shape[1] == table.shape[1],
                   kName, table, out);
}
void EmbeddingArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(table);
  visitor.Reads(ids);
  visitor.Writes(out);
}

absl::Status RmsNormArgs::Check() const {
  return CheckThat((x.rank == 2 || x.rank == 3) && IsFloat(x.dtype) && x.shape == out.shape &&
                       x.dtype == out.dtype && weight.dtype == x.dtype &&
                       weight.shape[0] == x.shape[x.rank - 1],
                   kName, x, weight);
}
void RmsNormArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(x);
  visitor.Reads(weight);
  visitor.Writes(out);
}

absl::Status LinearArgs::Check() const {
  return CheckThat(
      x.rank == 2 && weight.rank == 2 && out.rank == 2 && IsFloat(x.dtype) &&
          IsWeightOf(x, weight) && (out.dtype == x.dtype || out.dtype == DType::kF32) &&
          x.shape[1] == weight.shape[1] && out.shape[0] == x.shape[0] &&
          out.shape[1] == weight.shape[0] &&
          (!bias.present() || (bias.shape[0] == weight.shape[0] && bias.dtype == x.dtype)),
      kName, x, weight);
}
void LinearArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(x);
  visitor.Reads(weight);
  visitor.Reads(bias);
  visitor.Writes(out);
}

absl::Status RopeArgs::Check() const {
  absl::Status status =
      CheckThat(x.rank == 3 && IsFloat(x.dtype) &&
                    (inv_freq.shape[0] == 0 ||
                     (positions.dtype == DType::kI32 && positions.shape[0] == x.shape[0])) &&
                    2 * inv_freq.shape[0] <= x.shape[2] && inv_freq.shape[0] <= 128,
                kName, x, inv_freq);
  if (!status.ok() || !store.slots.present()) return status;
  const bool fits = v.rank == 3 && v.shape[0] == x.shape[0] && v.shape[1] <= x.shape[1] &&
                    store_begin >= 0 && store_begin <= x.shape[0];
  return CheckThat(
      fits && RowsFitCache(keys().Rows(store_begin, x.shape[0]), v.Rows(store_begin, x.shape[0]),
                           store.slots, store.k_cache, store.v_cache),
      "Rope: store", v, store.k_cache);
}
void RopeArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Writes(x);
  visitor.Reads(positions);
  visitor.Reads(inv_freq);
  visitor.Reads(v);
  visitor.Reads(store.slots);
  visitor.Writes(store.k_cache);
  visitor.Writes(store.v_cache);
}

absl::Status SiluMulArgs::Check() const {
  return CheckThat(gate.rank == 2 && IsFloat(out.dtype) && gate.shape == out.shape &&
                       (gate.dtype == out.dtype || gate.dtype == DType::kF32) &&
                       (!up.present() || (up.shape == gate.shape && up.dtype == gate.dtype)),
                   kName, gate, out);
}
void SiluMulArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(gate);
  visitor.Reads(up);
  visitor.Writes(out);
}

absl::Status AccumulateArgs::Check() const {
  return CheckThat(
      x.rank == 2 && x.dtype == DType::kF32 && IsFloat(out.dtype) && x.shape == out.shape, kName, x,
      out);
}
void AccumulateArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(x);
  visitor.Writes(out);
}

absl::Status AccumulateRmsNormArgs::Check() const {
  const absl::Status status = AccumulateArgs{x, residual}.Check();
  return status.ok() ? RmsNormArgs{residual, weight, epsilon, out}.Check() : status;
}
void AccumulateRmsNormArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(x);
  visitor.Writes(residual);
  visitor.Reads(weight);
  visitor.Writes(out);
}

absl::Status AttentionArgs::Check() const {
  bool ok = q.rank == 3 && IsFloat(q.dtype) && out.shape == q.shape &&
            (out.dtype == q.dtype || out.dtype == DType::kF32) && q.shape[2] <= 256 &&
            q_positions.dtype == DType::kI32 && q_positions.shape[0] == q.shape[0] &&
            group_split >= 0 && group_split <= q.shape[0];
  int64_t kv_heads = 0;
  for (const KeySegment& s : keys) {
    if (s.k.shape[0] == 0) continue;
    if (kv_heads == 0) kv_heads = s.k.shape[1];
    const bool causal = s.visible_to_group[0] == Visibility::kCausal ||
                        s.visible_to_group[1] == Visibility::kCausal;
    ok = ok && s.k.rank == 3 && s.k.shape == s.v.shape && s.k.dtype == q.dtype &&
         s.v.dtype == q.dtype && s.k.shape[1] == kv_heads && s.k.shape[2] == q.shape[2] &&
         kv_heads > 0 && q.shape[1] % kv_heads == 0 && q.shape[1] / kv_heads <= 128 &&
         (!causal || (s.positions.present() && s.positions.shape[0] == s.k.shape[0]));
  }
  return CheckThat(ok, kName, q, keys.empty() ? q : keys[0].k);
}
void AttentionArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(q);
  visitor.Reads(q_positions);
  for (KeySegment& segment : visitor.Own(keys)) {
    visitor.Reads(segment.k);
    visitor.Reads(segment.v);
    visitor.Reads(segment.positions);
  }
  visitor.Writes(out);
  visitor.Writes(lse);
}

absl::Status PagedAttentionArgs::Check() const {
  bool ok = q.rank == 3 && IsFloat(q.dtype) && out.shape == q.shape &&
            IsOneLayout(k_cache, v_cache) && k_cache.dtype == q.dtype && v_cache.dtype == q.dtype &&
            (out.dtype == q.dtype || out.dtype == DType::kF32) && k_cache.shape[3] == q.shape[2] &&
            q.shape[2] <= 256 && q.shape[1] % k_cache.shape[1] == 0 &&
            q.shape[1] / k_cache.shape[1] <= 128;
  ok = ok && (sequences != nullptr || rows.empty()) && total_slots >= 0;
  for (const PagedRows& rows : rows)
    ok = ok && rows.begin >= 0 && rows.count >= 0 && rows.begin + rows.count <= q.shape[0];
  return CheckThat(ok, kName, q, k_cache);
}
void PagedAttentionArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Own(rows);
  visitor.Reads(q);
  visitor.Reads(q_positions);
  visitor.Reads(k_cache);
  visitor.Reads(v_cache);
  visitor.Sequences(*this);
  visitor.Writes(out);
  visitor.Writes(lse);
}

absl::Status MergePartialsArgs::Check() const {
  return CheckThat(outs.rank == 4 && lses.rank == 3 && out.rank == 3 && outs.dtype == DType::kF32 &&
                       lses.dtype == DType::kF32 && IsFloat(out.dtype) &&
                       out.shape[0] == outs.shape[1] && out.shape[1] == outs.shape[2] &&
                       out.shape[2] == outs.shape[3] && outs.shape[3] <= 256,
                   kName, outs, out);
}
void MergePartialsArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(outs);
  visitor.Reads(lses);
  visitor.Writes(out);
  visitor.Writes(lse);
}

absl::Status ReadFromCacheArgs::Check() const {
  return CheckThat(RowsFitCache(k, v, slots, k_cache, v_cache), kName, k, k_cache);
}
void ReadFromCacheArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(slots);
  visitor.Reads(k_cache);
  visitor.Reads(v_cache);
  visitor.Writes(k);
  visitor.Writes(v);
}

absl::Status MaxPoolRowsArgs::Check() const {
  return CheckThat(scores.rank == 2 && scores.shape == out.shape && scores.dtype == DType::kF32 &&
                       out.dtype == DType::kF32 && window > 0 && window % 2 == 1,
                   kName, scores, out);
}
void MaxPoolRowsArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(scores);
  visitor.Writes(out);
}

absl::Status KeyScoreArgs::Check() const {
  return CheckThat(k.rank == 3 && query.rank == 3 && IsFloat(k.dtype) && k.dtype == query.dtype &&
                       scores.dtype == DType::kF32 && k.shape[2] <= 256 &&
                       query.shape[2] == k.shape[2] && query.shape[1] % k.shape[1] == 0 &&
                       scores.shape[0] == k.shape[0] && scores.shape[1] == k.shape[1],
                   kName, k, query);
}
void KeyScoreArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(k);
  visitor.Reads(query);
  visitor.Writes(scores);
}

absl::Status TopKPerHeadArgs::Check() const {
  return CheckThat(scores.rank == 2 && scores.dtype == DType::kF32 &&
                       indices.dtype == DType::kI32 && eligible_begin >= 0 &&
                       eligible_end <= scores.shape[0] && count >= 0 &&
                       count <= eligible_end - eligible_begin &&
                       indices.shape[0] == scores.shape[1] && indices.shape[1] == count,
                   kName, scores, indices);
}
void TopKPerHeadArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(scores);
  visitor.Writes(indices);
}

absl::Status GatherRowsPerHeadArgs::Check() const {
  return CheckThat(x.rank == 3 && IsFloat(x.dtype) && indices.rank == 2 &&
                       indices.dtype == DType::kI32 && out.rank == 3 && out.dtype == x.dtype &&
                       indices.shape[0] == x.shape[1] && out.shape[0] == indices.shape[1] &&
                       out.shape[1] == x.shape[1] && out.shape[2] == x.shape[2],
                   kName, x, out);
}
void GatherRowsPerHeadArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Reads(x);
  visitor.Reads(indices);
  visitor.Writes(out);
}

absl::Status SampleArgs::Check() const {
  return CheckThat(logits.rank == 2 && logits.dtype == DType::kF32 && logits.shape[1] > 0 &&
                       logits.shape[1] <= kMaxSampleVocab && tokens.rank == 1 &&
                       tokens.dtype == DType::kI32 && tokens.shape[0] == logits.shape[0] &&
                       (rows != nullptr || logits.shape[0] == 0) && edit_count >= 0 &&
                       (edits != nullptr || edit_count == 0),
                   kName, logits, tokens);
}
void SampleArgs::VisitOperands(OperandVisitor& visitor) {
  visitor.Writes(logits);
  visitor.Reads(rows, logits.rows());
  visitor.Reads(edits, edit_count);
  visitor.Writes(tokens);
}

}  // namespace apb::kernels
