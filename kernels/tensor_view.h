// The only tensor type that crosses module borders: a pointer with a type, a shape and strides. It
// does not own its memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace apb::kernels {

// kI8Block and kI4Block are quantized weights, packed in blocks (kernels/weight_blocks.h).
enum class DType : uint8_t { kF32, kBF16, kI32, kI64, kF16, kI8Block, kI4Block };

// Weights in a block, which are consecutive in one row.
constexpr int64_t kBlockLength = 32;

constexpr bool IsBlockType(DType dtype) {
  return dtype == DType::kI8Block || dtype == DType::kI4Block;
}

// Bytes of one element; 0 for block types, whose elements have no bytes of their own (BytesOf).
constexpr size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kI8Block:
    case DType::kI4Block:
      break;
  }
  return 0;
}

// Bytes of `elements` contiguous elements. For block types `elements` is a multiple of
// kBlockLength.
constexpr int64_t BytesOf(DType dtype, int64_t elements) {
  if (dtype == DType::kI8Block) return elements / kBlockLength * 34;
  if (dtype == DType::kI4Block) return elements / kBlockLength * 20;
  return elements * static_cast<int64_t>(SizeOf(dtype));
}

// The type's name in messages.
constexpr const char* NameOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kF16:
      return "f16";
    case DType::kI8Block:
      return "int8 blocks";
    case DType::kI4Block:
      return "int4 blocks";
  }
  return "?";
}

// bf16 as stored; arithmetic happens in float.
struct BFloat16 {
  uint16_t bits;
};
// IEEE half precision, likewise.
struct Float16 {
  uint16_t bits;
};

// Where the bytes are. An operation's operands lie in the place of its backend.
enum class Place : uint8_t { kCpu, kDevice };

// Up to four dimensions; strides are in elements; the last dimension always has stride 1. For block
// types, strides and the limits of Columns() are multiples of kBlockLength, so that rows begin with
// a block. A default-constructed view stands for an absent optional operand.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, 4> shape{0, 0, 0, 0};
  std::array<int64_t, 4> stride{0, 0, 0, 0};

  // A contiguous row-major view.
  static TensorView Contiguous(void* data, DType dtype, std::initializer_list<int64_t> shape) {
    TensorView view;
    view.data = data;
    view.dtype = dtype;
    view.rank = static_cast<int>(shape.size());
    int i = 0;
    for (int64_t extent : shape) view.shape[i++] = extent;
    int64_t stride = 1;
    for (int d = view.rank - 1; d >= 0; --d) {
      view.stride[d] = stride;
      stride *= view.shape[d];
    }
    return view;
  }

  bool present() const { return data != nullptr; }
  int64_t rows() const { return shape[0]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= shape[d];
    return rank == 0 ? 0 : n;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  // Rows [begin, end) of the first dimension.
  TensorView Rows(int64_t begin, int64_t end) const {
    TensorView view = *this;
    view.data = static_cast<std::byte*>(data) + BytesOf(dtype, begin * stride[0]);
    view.shape[0] = end - begin;
    return view;
  }
  // Columns [begin, end) of the last dimension of a rank-2 view, for example the keys of a packed
  // [T, qkv] buffer.
  TensorView Columns(int64_t begin, int64_t end) const {
    TensorView view = *this;
    view.data = static_cast<std::byte*>(data) + BytesOf(dtype, begin);
    view.shape[rank - 1] = end - begin;
    return view;
  }
  // A [T, heads * d] view seen as [T, heads, d].
  TensorView SplitHeads(int64_t head_dim) const {
    TensorView view = *this;
    view.rank = 3;
    view.shape = {shape[0], shape[1] / head_dim, head_dim, 0};
    view.stride = {stride[0], head_dim, 1, 0};
    return view;
  }
};

}  // namespace apb::kernels
