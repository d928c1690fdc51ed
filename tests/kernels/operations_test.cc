// Goal: operands that do not fit are refused, for all backends alike, with the operation's name and
// the shapes. Method: for each operation, a call that fits and calls that differ from it in one
// respect.
#include "kernels/operations.h"

#include <gtest/gtest.h>

#include <vector>

namespace apb::kernels {
namespace {

TensorView View(DType dtype, std::initializer_list<int64_t> shape) {
  static float memory[1];  // never read
  return TensorView::Contiguous(memory, dtype, shape);
}
TensorView F32(std::initializer_list<int64_t> shape) { return View(DType::kF32, shape); }
TensorView BF16(std::initializer_list<int64_t> shape) { return View(DType::kBF16, shape); }
TensorView F16(std::initializer_list<int64_t> shape) { return View(DType::kF16, shape); }
TensorView I32(std::initializer_list<int64_t> shape) { return View(DType::kI32, shape); }

// Short forms of operands.
absl::Status CheckCopy(const TensorView& source, const TensorView& target) {
  return CopyArgs{source, target}.Check();
}
absl::Status CheckEmbedding(const TensorView& table, const TensorView& ids, const TensorView& out) {
  return EmbeddingArgs{table, ids, out}.Check();
}
absl::Status CheckRmsNorm(const TensorView& x, const TensorView& weight, const TensorView& out) {
  return RmsNormArgs{x, weight, 1e-5f, out}.Check();
}
absl::Status CheckLinear(const LinearArgs& args) { return args.Check(); }
absl::Status CheckRope(const RopeArgs& args) { return args.Check(); }
absl::Status CheckSiluMul(const TensorView& gate, const TensorView& up, const TensorView& out) {
  return SiluMulArgs{gate, up, out}.Check();
}
absl::Status CheckAccumulate(const TensorView& x, const TensorView& out) {
  return AccumulateArgs{x, out}.Check();
}
absl::Status CheckAttention(const AttentionArgs& args) { return args.Check(); }
absl::Status CheckPagedAttention(const PagedAttentionArgs& args) { return args.Check(); }
absl::Status CheckMergePartials(const TensorView& outs, const TensorView& lses,
                                const TensorView& out) {
  return MergePartialsArgs{outs, lses, out, {}}.Check();
}
absl::Status CheckReadFromCache(const TensorView& k, const TensorView& v, const TensorView& slots,
                                const TensorView& k_cache, const TensorView& v_cache) {
  return ReadFromCacheArgs{slots, k_cache, v_cache, k, v}.Check();
}
absl::Status CheckMaxPoolRows(const TensorView& scores, int window, const TensorView& out) {
  return MaxPoolRowsArgs{scores, window, out}.Check();
}
absl::Status CheckKeyScores(const KeyScoreArgs& args) { return args.Check(); }
absl::Status CheckTopKPerHead(const TopKPerHeadArgs& args) { return args.Check(); }
absl::Status CheckGatherRowsPerHead(const TensorView& x, const TensorView& indices,
                                    const TensorView& out) {
  return GatherRowsPerHeadArgs{x, indices, out}.Check();
}
absl::Status CheckSample(const SampleArgs& args) { return args.Check(); }

TEST(ArgumentChecks, Linear) {
  const LinearArgs good{
      .x = BF16({3, 8}), .weight = BF16({5, 8}), .bias = BF16({5}), .out = F32({3, 5})};
  EXPECT_TRUE(CheckLinear(good).ok());
  for (const auto& change : std::vector<void (*)(LinearArgs&)>{
           [](LinearArgs& a) {
             a.x = BF16({3, 7});
           },
           [](LinearArgs& a) {
             a.x = F32({3, 8});
           },
           [](LinearArgs& a) {
             a.weight = BF16({4, 8});
           },
           [](LinearArgs& a) {
             a.out = F32({2, 5});
           },
           [](LinearArgs& a) { a.bias = BF16({4}); }, [](LinearArgs& a) { a.bias = F32({5}); }}) {
    LinearArgs bad = good;
    change(bad);
    EXPECT_EQ(CheckLinear(bad).code(), absl::StatusCode::kInternal);
  }
  LinearArgs bad = good;
  bad.x = BF16({3, 7});
  EXPECT_EQ(CheckLinear(bad).message(),
            "Linear: shapes or types do not fit: bf16[3, 7] and bf16[5, 8]");
}

// f16 is allowed where bf16 is. The two do not mix, although they have the same size.
TEST(ArgumentChecks, HalfPrecision) {
  EXPECT_TRUE(
      CheckLinear({.x = F16({3, 8}), .weight = F16({5, 8}), .bias = {}, .out = F16({3, 5})}).ok());
  EXPECT_TRUE(
      CheckLinear({.x = F16({3, 8}), .weight = F16({5, 8}), .bias = {}, .out = F32({3, 5})}).ok());
  EXPECT_FALSE(
      CheckLinear({.x = F16({3, 8}), .weight = BF16({5, 8}), .bias = {}, .out = F16({3, 5})}).ok());
  EXPECT_FALSE(
      CheckLinear({.x = F16({3, 8}), .weight = F16({5, 8}), .bias = {}, .out = BF16({3, 5})}).ok());
  EXPECT_FALSE(CheckCopy(F16({2}), BF16({2})).ok());
  EXPECT_TRUE(CheckEmbedding(F16({9, 4}), I32({2}), F16({2, 4})).ok());
  EXPECT_FALSE(CheckEmbedding(F16({9, 4}), I32({2}), BF16({2, 4})).ok());
  EXPECT_FALSE(CheckEmbedding(I32({9, 4}), I32({2}), I32({2, 4})).ok());
  EXPECT_TRUE(CheckRmsNorm(F16({2, 4}), F16({4}), F16({2, 4})).ok());
  EXPECT_FALSE(CheckRmsNorm(F16({2, 4}), BF16({4}), F16({2, 4})).ok());
  EXPECT_TRUE(CheckSiluMul(F32({2, 4}), {}, F16({2, 4})).ok());
  EXPECT_FALSE(CheckSiluMul(F16({2, 4}), {}, BF16({2, 4})).ok());
  EXPECT_TRUE(CheckAccumulate(F32({2, 4}), F16({2, 4})).ok());
  EXPECT_TRUE(CheckMergePartials(F32({2, 3, 4, 8}), F32({2, 3, 4}), F16({3, 4, 8})).ok());
  const KeySegment keys{.k = F16({9, 2, 64}), .v = BF16({9, 2, 64}), .positions = I32({9})};
  EXPECT_FALSE(CheckAttention({.q = F16({5, 4, 64}),
                               .q_positions = I32({5}),
                               .keys = {&keys, 1},
                               .scale = 1,
                               .out = F16({5, 4, 64})})
                   .ok());
  const TensorView slots = View(DType::kI64, {2});
  EXPECT_TRUE(CheckReadFromCache(F16({2, 1, 8}), F16({2, 1, 8}), slots, F16({4, 1, 16, 8}),
                                 F16({4, 1, 16, 8}))
                  .ok());
  EXPECT_FALSE(CheckReadFromCache(F16({2, 1, 8}), F16({2, 1, 8}), slots, F16({4, 1, 16, 8}),
                                  BF16({4, 1, 16, 8}))
                   .ok());
}

// Block types are only for weights of products. Rows and their slices are whole blocks.
TEST(ArgumentChecks, QuantizedWeights) {
  for (const DType type : {DType::kI8Block, DType::kI4Block}) {
    const TensorView weight = View(type, {5, 64});
    EXPECT_TRUE(
        CheckLinear({.x = BF16({3, 64}), .weight = weight, .bias = BF16({5}), .out = BF16({3, 5})})
            .ok());
    EXPECT_TRUE(
        CheckLinear({.x = F32({3, 64}), .weight = weight, .bias = {}, .out = F32({3, 5})}).ok());
    EXPECT_TRUE(
        CheckLinear(
            {.x = F32({3, 32}), .weight = weight.Columns(32, 64), .bias = {}, .out = F32({3, 5})})
            .ok());
    EXPECT_FALSE(
        CheckLinear({.x = F16({3, 64}), .weight = weight, .bias = {}, .out = F32({3, 5})}).ok());
    EXPECT_FALSE(
        CheckLinear(
            {.x = F32({3, 40}), .weight = weight.Columns(0, 40), .bias = {}, .out = F32({3, 5})})
            .ok());
    EXPECT_FALSE(
        CheckLinear(
            {.x = F32({3, 40}), .weight = View(type, {5, 40}), .bias = {}, .out = F32({3, 5})})
            .ok());
    EXPECT_FALSE(CheckLinear({.x = weight, .weight = weight, .bias = {}, .out = F32({5, 5})}).ok());
    EXPECT_FALSE(CheckCopy(weight, weight).ok());
    EXPECT_FALSE(CheckEmbedding(weight, I32({2}), View(type, {2, 64})).ok());
    EXPECT_FALSE(CheckRmsNorm(F32({5, 64}), View(type, {64}), F32({5, 64})).ok());
  }
}

TEST(ArgumentChecks, Attention) {
  KeySegment good_keys{.k = BF16({9, 2, 64}), .v = BF16({9, 2, 64}), .positions = I32({9})};
  const auto check = [](const KeySegment& keys, int64_t heads, int64_t split) {
    return CheckAttention({.q = BF16({5, heads, 64}),
                           .q_positions = I32({5}),
                           .group_split = split,
                           .keys = {&keys, 1},
                           .scale = 1,
                           .out = BF16({5, heads, 64})})
        .ok();
  };
  EXPECT_TRUE(check(good_keys, 4, 5));
  EXPECT_FALSE(check(good_keys, 3, 5));  // not a multiple of the KV heads
  EXPECT_FALSE(check(good_keys, 4, 6));
  KeySegment keys = good_keys;
  keys.positions = {};
  EXPECT_FALSE(check(keys, 4, 5));  // causal without positions
  keys.visible_to_group = {Visibility::kAll, Visibility::kNone};
  EXPECT_TRUE(check(keys, 4, 5));
  keys.v = BF16({8, 2, 64});
  EXPECT_FALSE(check(keys, 4, 5));
}

TEST(ArgumentChecks, PagedAttention) {
  PagedRows rows{.begin = 1, .count = 2};
  const PagedSequence sequence{.slot_count = 3};
  PagedAttentionArgs args{.q = BF16({3, 4, 64}),
                          .q_positions = I32({3}),
                          .k_cache = BF16({7, 2, 16, 64}),
                          .v_cache = BF16({7, 2, 16, 64}),
                          .rows = {&rows, 1},
                          .sequences = &sequence,
                          .total_slots = 3,
                          .scale = 1,
                          .out = F32({3, 4, 64})};
  EXPECT_TRUE(CheckPagedAttention(args).ok());
  rows.count = 3;
  EXPECT_FALSE(CheckPagedAttention(args).ok());
  rows.count = 2;
  args.sequences = nullptr;
  EXPECT_FALSE(CheckPagedAttention(args).ok());
  args.sequences = &sequence;
  args.v_cache.stride[0] += 64;  // kernels take one offset for both caches
  EXPECT_FALSE(CheckPagedAttention(args).ok());
  args.v_cache = args.k_cache;
  EXPECT_TRUE(CheckPagedAttention(args).ok());
  args.k_cache = BF16({7, 2, 16, 32});
  EXPECT_FALSE(CheckPagedAttention(args).ok());
}

TEST(ArgumentChecks, TheOthers) {
  EXPECT_FALSE(CheckCopy(F32({2, 3}), F32({3, 2})).ok());
  EXPECT_FALSE(CheckCopy(F32({2}), BF16({2})).ok());
  EXPECT_FALSE(CheckEmbedding(F32({9, 4}), I32({2}), F32({3, 4})).ok());
  EXPECT_FALSE(CheckRmsNorm(F32({2, 4}), F32({5}), F32({2, 4})).ok());
  EXPECT_FALSE(CheckRope({.x = F32({2, 1, 8}), .positions = I32({2}), .inv_freq = F32({5})}).ok());
  EXPECT_FALSE(CheckSiluMul(F32({2, 4}), F32({2, 5}), F32({2, 4})).ok());
  EXPECT_TRUE(CheckSiluMul(F32({2, 4}), {}, BF16({2, 4})).ok());
  EXPECT_FALSE(CheckSiluMul(BF16({2, 4}), {}, F32({2, 4})).ok());
  EXPECT_FALSE(CheckAccumulate(BF16({2, 4}), F32({2, 4})).ok());
  EXPECT_FALSE(CheckMergePartials(F32({2, 3, 4, 8}), F32({2, 3, 4}), F32({3, 4, 9})).ok());
  EXPECT_FALSE(CheckRope({.x = F32({2, 1, 8}),
                          .store = {I32({2}), F32({4, 1, 16, 8}), F32({4, 1, 16, 8})},
                          .v = F32({2, 1, 8})})
                   .ok());  // slots are i64
  EXPECT_FALSE(CheckMaxPoolRows(F32({2, 4}), 4, F32({2, 4})).ok());
  EXPECT_FALSE(
      CheckKeyScores({.k = F32({2, 2, 8}), .query = F32({1, 3, 8}), .scores = F32({2, 2})}).ok());
  EXPECT_FALSE(CheckTopKPerHead({.scores = F32({9, 2}),
                                 .eligible_begin = 2,
                                 .eligible_end = 9,
                                 .count = 8,
                                 .indices = I32({2, 8})})
                   .ok());
  EXPECT_FALSE(CheckGatherRowsPerHead(F32({9, 2, 8}), I32({2, 3}), F32({4, 2, 8})).ok());
}

TEST(ArgumentChecks, Sample) {
  const SampleRow row;
  const LogitEdit edit;
  const SampleArgs good{
      .logits = F32({1, 9}), .rows = &row, .edits = &edit, .edit_count = 1, .tokens = I32({1})};
  EXPECT_TRUE(CheckSample(good).ok());
  EXPECT_TRUE(CheckSample({.logits = F32({0, 9}), .tokens = I32({0})}).ok());
  for (const auto& change : std::vector<void (*)(SampleArgs&)>{
           [](SampleArgs& a) {
             a.logits = BF16({1, 9});
           },
           [](SampleArgs& a) {
             a.logits = F32({1, 0});
           },
           [](SampleArgs& a) {
             a.logits = F32({1, kMaxSampleVocab + 1});
           },
           [](SampleArgs& a) { a.rows = nullptr; }, [](SampleArgs& a) { a.edits = nullptr; },
           [](SampleArgs& a) { a.tokens = I32({2}); }}) {
    SampleArgs bad = good;
    change(bad);
    EXPECT_EQ(CheckSample(bad).code(), absl::StatusCode::kInternal);
  }
}

}  // namespace
}  // namespace apb::kernels
