// Decode over the paged cache on AMX tiles, for at most 16 rows (query heads of a group times new
// tokens). Bound by reading the cache. Keys are used in place: the left operand of S^T = K q^T is
// rows of the cache, so that K needs no rearrangement. A vector holds one key's scores of all rows.
#pragma once

#include "kernels/cpu/simd/packed_keys.h"
#include "kernels/cpu/simd/paged_keys.h"
#include "kernels/cpu/simd/softmax_state.h"

#ifdef __AMX_BF16__
namespace apb::kernels::APB_ISA {

constexpr int kAmxKeys = 256;  // keys whose scores are kept
constexpr int kFewRows = 16;
constexpr int kAmxChunk = 32;

struct AmxFewRows {
  static constexpr int64_t kMaxDim = 256;
  alignas(64) uint16_t q[kMaxDim / 32 * 512];          // [d / 32][16 pairs][16 rows][2]
  alignas(64) float scores[kAmxKeys * kFewRows];       // [keys][rows]
  alignas(64) uint16_t p[kAmxKeys / kAmxChunk * 512];  // [keys / 32][16 rows][32 keys]
  alignas(64) uint16_t v[4 * 512];                     // 4 x [16 pairs of keys][16 dims][2]
  alignas(64) float acc[kMaxDim * kFewRows];           // [d / 16][16 rows][16 dims]
  alignas(64) uint16_t stage[kAmxChunk * kMaxDim];     // copies of keys that are not contiguous
  SoftmaxState<Vec> states;                            // of the rows
  IntVec position;
};

// The keys (or values) of a sequence in one KV head of one cache, in chunks of 32.
struct KeyChunks {
  const uint16_t* cache;
  int64_t block_stride, row_stride, block_size;
  const int32_t* table;
  int64_t end;
  bool side_by_side;  // whether the 32 rows of a chunk are in one KV block

  KeyChunks(const TensorView& view, const PagedSequence& sequence, int head, int64_t end_slot)
      : cache(static_cast<const uint16_t*>(view.data) + head * view.stride[1]),
        block_stride(view.stride[0]),
        row_stride(view.stride[2]),
        block_size(view.shape[2]),
        table(sequence.block_table),
        end(end_slot),
        side_by_side(view.shape[2] % kAmxChunk == 0) {}

  const uint16_t* Row(int64_t slot) const {
    const uint32_t at = static_cast<uint32_t>(slot), size = static_cast<uint32_t>(block_size);
    return cache + table[at / size] * block_stride + at % size * row_stride;
  }
  // The address of 32 rows that are `stride` elements apart; rows past the end are 0. Rows in
  // several KV blocks are copied to `stage`.
  const uint16_t* Chunk(int64_t slot, int64_t d, uint16_t* stage, int64_t& stride) const {
    if (side_by_side && slot + kAmxChunk <= end) {
      stride = row_stride;
      return Row(slot);
    }
    stride = d;
    for (int i = 0; i < kAmxChunk; ++i) {
      if (slot + i < end) {
        __builtin_memcpy(stage + i * d, Row(slot + i), d * 2);
      } else {
        __builtin_memset(stage + i * d, 0, d * 2);
      }
    }
    return stage;
  }
};

// Prefetches a quarter of each of four chunks: a few lines at a time between the arithmetic,
// because a burst would stall the core, and from four streams, which memory serves faster than one.
struct ChunkPrefetcher {
  const char* at[4] = {};
  int64_t steps = 0;  // lines of 64 bytes from each stream for one call; 16 calls fetch all

  // Prefetches the share of chunk `index` of the 8 chunks from slot `block` on.
  ChunkPrefetcher(const KeyChunks& keys, int64_t block, int64_t index) {
    const int64_t slot = block + index / 4 * 4 * kAmxChunk, quarter = 8 * keys.row_stride;
    if (!keys.side_by_side || slot + 4 * kAmxChunk > keys.end) return;
    steps = (quarter * 2 + 1023) / 1024;
    for (int i = 0; i < 4; ++i) {
      at[i] = reinterpret_cast<const char*>(keys.Row(slot + i * kAmxChunk) + index % 4 * quarter);
    }
  }
  void Fetch() {
    for (int64_t n = 0; n < steps; ++n) {
      for (int i = 0; i < 4; ++i) {
        _mm_prefetch(at[i], _MM_HINT_T1);
        at[i] += 64;
      }
    }
  }
};

// Writes the scores of the keys [slot, slot + 32), and returns the highest of each row.
static inline Vec ScoreChunk(AmxFewRows& few, const KeyChunks& keys, const PagedSequence& sequence,
                             int64_t slot, int64_t d, float* scores) {
  int64_t stride;
  const uint16_t* k = keys.Chunk(slot, d, few.stage, stride);
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t c = 0; c < d; c += 32) {
    _tile_loadd(6, few.q + c * 16, 64);
    _tile_loadd(4, k + c, stride * 2);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, k + 16 * stride + c, stride * 2);
    _tile_dpbf16ps(1, 5, 6);
  }
  _tile_stored(0, scores, 64);
  _tile_stored(1, scores + 256, 64);
  if (slot + kAmxChunk > sequence.causal_begin || slot + kAmxChunk > keys.end) {
    for (int i = 0; i < kAmxChunk; ++i) {
      const bool real = slot + i < keys.end, all = slot + i < sequence.causal_begin;
      const IntVec at =
          IntVec{} + (!real ? kPadding
                      : all ? INT32_MIN
                            : sequence.slot_positions[slot + i - sequence.causal_begin]);
      Store(scores + i * 16, at <= few.position ? Load(scores + i * 16) : Splat(kMasked));
    }
  }
  Vec top0 = Load(scores), top1 = Load(scores + 16);
  for (int i = 2; i < kAmxChunk; i += 2) {
    top0 = MaxOf(top0, Load(scores + i * 16));
    top1 = MaxOf(top1, Load(scores + i * 16 + 16));
  }
  return MaxOf(top0, top1);
}

// Writes the weights p = 2^(scores * factor - shift) of 32 keys as a left operand, and adds them to
// `sum`.
static inline void WeighChunk(const float* scores, Vec factor, Vec shift, Vec& sum, uint16_t* p,
                              ChunkPrefetcher prefetcher) {
  const __m512i mix = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                       23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512i pairs[16];
  for (int i = 0; i < 16; ++i) {
    const Vec a = Exp2<true>(Load(scores + i * 32) * factor - shift),
              b = Exp2<true>(Load(scores + i * 32 + 16) * factor - shift);
    sum += a + b;
    prefetcher.Fetch();
    const __m512bh both =
        _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a));
    pairs[i] = _mm512_permutexvar_epi16(mix, reinterpret_cast<__m512i>(both));
  }
  TransposeTo(pairs, p);
}

// acc += p v for 32 (kTiles = 2) or 64 (kTiles = 4) dimensions from `c` on. Of each 32 dimensions,
// the first tile has those with (number & 4) == 0.
template <int kTiles>
static void AddValues(AmxFewRows& few, const KeyChunks& values, int64_t begin, int64_t end,
                      int64_t d, int64_t c) {
  float* acc = few.acc + c * kFewRows;
  _tile_loadd(0, acc, 64);
  _tile_loadd(1, acc + 256, 64);
  if (kTiles == 4) _tile_loadd(2, acc + 512, 64);
  if (kTiles == 4) _tile_loadd(3, acc + 768, 64);
  for (int64_t slot = begin; slot < end; slot += kAmxChunk) {
    int64_t stride;
    const uint16_t* v = values.Chunk(slot, d, few.stage, stride);
    ChunkPrefetcher prefetcher(values, begin + kAmxKeys, (slot - begin) / kAmxChunk);
    if (c > 0) prefetcher.steps = 0;
    for (int i = 0; i < kAmxChunk; i += 2) {
      prefetcher.Fetch();
      for (int t = 0; t < kTiles; t += 2) {
        const __m512i even = _mm512_loadu_si512(v + i * stride + c + t * 16),
                      odd = _mm512_loadu_si512(v + (i + 1) * stride + c + t * 16);
        _mm512_store_si512(few.v + t * 512 + i * 16, _mm512_unpacklo_epi16(even, odd));
        _mm512_store_si512(few.v + t * 512 + 512 + i * 16, _mm512_unpackhi_epi16(even, odd));
      }
    }
    _tile_loadd(4, few.p + (slot - begin) * 16, 64);
    _tile_loadd(6, few.v, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, few.v + 512, 64);
    _tile_dpbf16ps(1, 4, 7);
    if (kTiles == 4) _tile_loadd(6, few.v + 1024, 64);
    if (kTiles == 4) _tile_dpbf16ps(2, 4, 6);
    if (kTiles == 4) _tile_loadd(7, few.v + 1536, 64);
    if (kTiles == 4) _tile_dpbf16ps(3, 4, 7);
  }
  _tile_stored(0, acc, 64);
  _tile_stored(1, acc + 256, 64);
  if (kTiles == 4) _tile_stored(2, acc + 512, 64);
  if (kTiles == 4) _tile_stored(3, acc + 768, 64);
}

static void StartAmxFewRows(AmxFewRows& few, const PagedAttentionArgs& args, const PagedTask& task,
                            int group, int64_t d) {
  const PagedRows& tokens = args.rows[task.sequence];
  const int64_t rows = tokens.count * group;
  alignas(64) int32_t positions[16];
  const uint16_t* q[16];
  for (int64_t r = 0; r < 16; ++r) {
    const int64_t row = Min(r, rows - 1), t = tokens.begin + row / group;
    q[r] = static_cast<const uint16_t*>(args.q.data) + t * args.q.stride[0] +
           (task.head * group + row % group) * args.q.stride[1];
    positions[r] = static_cast<const int32_t*>(args.q_positions.data)[t];
  }
  __builtin_memcpy(&few.position, positions, 64);
  for (int64_t c = 0; c < d; c += 32) {
    __m512i lines[16];
    for (int r = 0; r < 16; ++r) lines[r] = _mm512_loadu_si512(q[r] + c);
    TransposeTo(lines, few.q + c * 16);
  }
  __builtin_memset(few.acc, 0, sizeof(float) * kFewRows * d);
  few.states = {};
}

static void RunAmxFewRows(const PagedAttentionArgs& args, const PagedTask& task, AmxFewRows& few,
                          float* partials, int group, int64_t d) {
  const PagedSequence& sequence = args.sequences[task.sequence];
  StartAmxFewRows(few, args, task, group, d);
  const KeyChunks keys(args.k_cache, sequence, task.head, task.slot_end),
      values(args.v_cache, sequence, task.head, task.slot_end);
  const float factor = args.scale * kLog2e;
  for (int64_t s = task.slot_begin; s < task.slot_end; s += kAmxKeys) {
    const int64_t end = Min(s + kAmxKeys, task.slot_end);
    Vec highest = Splat(kMasked);
    for (int64_t c = s; c < end; c += kAmxChunk) {
      highest = MaxOf(highest, ScoreChunk(few, keys, sequence, c, d, few.scores + (c - s) * 16));
    }
    const Vec rescale = few.states.RaiseMax(highest, factor), shift = few.states.Reference();
    Vec sum = few.states.row_sum;
    for (int64_t c = s; c < end; c += kAmxChunk) {
      WeighChunk(few.scores + (c - s) * 16, Splat(factor), shift, sum, few.p + (c - s) * 16,
                 ChunkPrefetcher(keys, s + kAmxKeys, (c - s) / kAmxChunk));
    }
    for (int64_t i = 0; i < d * kFewRows; i += 16) {
      Store(few.acc + i, Load(few.acc + i) * Splat(rescale[i / 16 % 16]));
    }
    int64_t c = 0;
    for (; c + 64 <= d; c += 64) AddValues<4>(few, values, s, end, d, c);
    if (c < d) AddValues<2>(few, values, s, end, d, c);
    few.states.row_sum = sum;
  }
  const __m512i front = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i back = _mm512_add_epi32(front, _mm512_set1_epi32(8));
  for (int64_t r = 0; r < args.rows[task.sequence].count * group; ++r) {
    float* out = partials + task.partial + r * (d + 1);
    const SoftmaxState<float> state{few.states.row_max[r], few.states.row_sum[r]};
    const float normalizer = state.Normalizer();
    for (int64_t c = 0; c < d; c += 32) {
      const float* tiles = few.acc + c * kFewRows + r * 16;
      const __m512 lo = reinterpret_cast<__m512>(Load(tiles) * Splat(normalizer)),
                   hi = reinterpret_cast<__m512>(Load(tiles + 256) * Splat(normalizer));
      _mm512_storeu_ps(out + c, _mm512_permutex2var_ps(lo, front, hi));
      _mm512_storeu_ps(out + c + 16, _mm512_permutex2var_ps(lo, back, hi));
    }
    out[d] = state.LogSumExp(kLn2);
  }
}

}  // namespace apb::kernels::APB_ISA
#endif
