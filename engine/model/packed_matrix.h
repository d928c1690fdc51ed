// The weight of a matrix product in a published quantized format, and its conversion into blocks
// (kernels/weight_blocks.h). The file's integers, scales and zeros are kept if a block can hold
// them. Otherwise the weights that they represent are quantized again, to int8.
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
  // The weight `name` (e.g. "….q_proj.weight") [rows, columns]. nullopt if the checkpoint does not
  // have it in the format of `config`. kInvalidArgument names a tensor that is missing or has the
  // wrong shape or type. The checkpoint must outlive the result.
  static absl::StatusOr<std::optional<PackedMatrix>> Find(const Checkpoint& checkpoint,
                                                          const QuantizationConfig& config,
                                                          const std::string& name, int64_t rows,
                                                          int64_t columns);

  kernels::DType type() const { return type_; }
  // Whether a block's inputs are of several groups (act-order), so that it is quantized again.
  bool quantizes_again() const { return mixed_; }
  int64_t rows() const { return rows_.length(); }
  int64_t columns() const { return columns_.length(); }
  // The integers in the mapped file.
  const std::byte* data() const { return integers_->data; }
  size_t size_bytes() const { return integers_->size_bytes; }
  const SafetensorsFile* file() const { return file_; }

  // Keeps only these of the current rows and columns. kInvalidArgument if the columns do not begin
  // and end at whole blocks.
  absl::Status Cut(const Range& rows, const Range& columns);
  // Converts the rows from `begin` on into `target`, whose type is type(), as many as it has.
  // kInvalidArgument for a scale that a block cannot hold. Thread-safe.
  absl::Status Convert(int64_t begin, const kernels::TensorView& target) const;

 private:
  struct Tensors;
  absl::Status FindCompressed(const Tensors& tensors);
  absl::Status FindByInputs(const Tensors& tensors);
  absl::Status CheckOrder(const std::string& tensor);

  // Integers and zeros by row and column of the whole matrix, as numbers from 0 on: unsigned ones
  // are as in the file, to signed ones 2^(bits - 1) is added.
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
  const SafetensorsEntry* zeros_ = nullptr;  // null if symmetric
  const SafetensorsEntry* order_ = nullptr;  // the group of each input; null if in order
  kernels::DType scale_type_ = kernels::DType::kF16;
  Range rows_, columns_;
};

}  // namespace apb::model
