// Quantized weights of matrix products. A row of a matrix [out, in] (in is a multiple of 32) is a
// sequence of blocks of 32 consecutive weights. Blocks are aligned to 2 bytes only.
#pragma once

#include <cstdint>

#include "kernels/float16.h"
#include "kernels/tensor_view.h"

namespace apb::kernels {

// DType::kI8Block: weight i is scale * q[i].
struct I8Block {
  Float16 scale;
  int8_t q[kBlockLength];
};
static_assert(sizeof(I8Block) == 34 && alignof(I8Block) == 2);
static_assert(BytesOf(DType::kI8Block, kBlockLength) == sizeof(I8Block));

// DType::kI4Block: weight i is scale * (n[i] - zero), n[i] from 0 to 15. q[i] holds n[i] in its low
// four bits and n[i + 16] in its high four.
struct I4Block {
  Float16 scale;
  Float16 zero;
  uint8_t q[kBlockLength / 2];
};
static_assert(sizeof(I4Block) == 20 && alignof(I4Block) == 2);
static_assert(BytesOf(DType::kI4Block, kBlockLength) == sizeof(I4Block));

// Packs the integers n of 32 weights, each from 0 to 15, into a block's bytes.
inline void PackI4(const uint8_t* n, uint8_t* q) {
  for (int i = 0; i < 16; ++i) q[i] = static_cast<uint8_t>(n[i] | n[i + 16] << 4);
}

// Writes the 32 weights of a block.
inline void DecodeBlock(const I8Block& block, float* out) {
  const float scale = Float16ToFloat(block.scale);
  for (int i = 0; i < kBlockLength; ++i) out[i] = scale * static_cast<float>(block.q[i]);
}
inline void DecodeBlock(const I4Block& block, float* out) {
  const float scale = Float16ToFloat(block.scale), zero = Float16ToFloat(block.zero);
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * (static_cast<float>(block.q[i] & 15) - zero);
    out[i + 16] = scale * (static_cast<float>(block.q[i] >> 4) - zero);
  }
}

// Writes the `count` weights (a multiple of kBlockLength) of the packed `blocks`.
void DecodeBlocks(DType type, const void* blocks, int64_t count, float* out);

// Quantizes `count` weights (a multiple of kBlockLength), each block by itself. kI8Block is
// symmetric: the largest magnitude becomes 127. kI4Block clips the range where that reduces the sum
// of squared errors. False if a weight is not finite or too large for a scale in half precision;
// `blocks` is undefined then.
bool EncodeBlocks(const float* weights, int64_t count, DType type, void* blocks);

}  // namespace apb::kernels
