// A weight of a matrix product as a published format has it, and its conversion into blocks
// (kernels/weight_blocks.h). The integers, scales and zeros of the file are kept where a block can
// hold them; where it cannot, the weights that they stand for are quantized again, to int8.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "engine/model/layer_weights.h"
#include "engine/model/quantization_config.h"
#include "kernels/tensor_view.h"

namespace apb::model {

class PackedMatrix {
 public:
  // The weight `name` (as "….q_proj.weight") [rows, columns]; nullopt where the checkpoint does not
  // have it in the format of `config`. kInvalidArgument names a tensor that is missing or does not
  // fit.
  static absl::StatusOr<std::optional<PackedMatrix>> Find(const Checkpoint& checkpoint,
                                                          const QuantizationConfig& config,
                                                          const std::string& name, int64_t rows,
                                                          int64_t columns);

  kernels::DType type() const { return type_; }
  // Inputs of several groups are mixed (act-order).
  bool quantizes_again() const { return mixed_; }
  int64_t rows() const { return rows_.length(); }
  int64_t columns() const { return columns_.length(); }
  // Where the integers are.
  const std::byte* data() const { return integers_->data; }
  size_t size_bytes() const { return integers_->size_bytes; }
  const SafetensorsFile* file() const { return file_; }

  // Leaves these rows and columns of what there is.
  absl::Status Cut(const Range& rows, const Range& columns);
  // Converts rows from `begin` on, as many as `target` has. Thread-safe.
  absl::Status Convert(int64_t begin, const kernels::TensorView& target) const;

 private:
  struct Tensors;
  absl::Status FindCompressed(const Tensors& tensors);
  absl::Status FindByInputs(const Tensors& tensors);
  absl::Status CheckOrder(const std::string& tensor);

  // Of the whole matrix, from 0 on: what is unsigned in the file is as it is, what is signed is
  // 2^(bits - 1) more.
  template <PackedFormat kFormat>
  int Integer(int64_t row, int64_t column) const;
  int Zero(int64_t row, int64_t group) const;
  float Scale(int64_t row, int64_t group) const;
  int64_t GroupOf(int64_t column) const;
  template <PackedFormat kFormat>
  absl::Status ConvertBlock(int64_t row, int64_t column, void* block) const;
  template <PackedFormat kFormat>
  absl::Status ConvertRows(int64_t begin, const kernels::TensorView& target) const;

  PackedFormat format_ = PackedFormat::kNone;
  kernels::DType type_ = kernels::DType::kI4Block;
  int bits_ = 0;
  int64_t all_rows_ = 0, all_columns_ = 0, groups_ = 0, group_length_ = 0;
  bool zeros_less_one_ = false, mixed_ = false;
  const SafetensorsFile* file_ = nullptr;
  const SafetensorsEntry* integers_ = nullptr;
  const SafetensorsEntry* scales_ = nullptr;
  const SafetensorsEntry* zeros_ = nullptr;  // null: symmetric
  const SafetensorsEntry* order_ = nullptr;  // the group of each input; null: one after the other
  kernels::DType scale_type_ = kernels::DType::kF16;
  Range rows_, columns_;
};

}  // namespace apb::model
