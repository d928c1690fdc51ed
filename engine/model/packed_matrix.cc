#include "engine/model/packed_matrix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/base/status_macros.h"
#include "engine/model/float_convert.h"
#include "kernels/weight_blocks.h"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int kLength = static_cast<int>(kernels::kBlockLength);

absl::Status Bad(const std::string& tensor, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("checkpoint: tensor '", tensor, "' ", what));
}

int64_t Words(int64_t integers, int bits) { return (integers * bits + 31) / 32; }

// memcpy, because safetensors files do not align their tensors.
uint32_t WordAt(const SafetensorsEntry& entry, int64_t at) {
  uint32_t word;
  std::memcpy(&word, entry.data + at * 4, 4);
  return word;
}

// AutoAWQ stores output i of a word's eight outputs at place kAwqPlaces[i].
constexpr std::array<int, 8> kAwqPlaces = {0, 4, 1, 5, 2, 6, 3, 7};

// The word that holds integer `at` of 4 or 8 bits, and the integer's place in the word.
int64_t WordOf(int64_t at, int bits) { return at >> (bits == 4 ? 3 : 2); }
int PlaceOf(int64_t at, int bits) { return static_cast<int>(at & (bits == 4 ? 7 : 3)); }
int FieldOf(uint32_t word, int place, int bits) {
  return static_cast<int>(word >> (place * bits) & ((1u << bits) - 1));
}

}  // namespace

// The tensors of one matrix, by the last part of their names.
struct PackedMatrix::Tensors {
  const Checkpoint& checkpoint;
  std::string prefix;  // "….q_proj."

  const SafetensorsEntry* Optional(const char* name) const {
    return checkpoint.FindEntry(prefix + name).entry;
  }
  // The tensor, if it has this shape and one of these types.
  absl::StatusOr<const SafetensorsEntry*> Get(const char* name, std::vector<int64_t> shape,
                                              const std::vector<std::string>& types) const {
    const SafetensorsEntry* entry = Optional(name);
    if (entry == nullptr) return Bad(prefix + name, "is missing");
    if (entry->shape != shape) {
      return Bad(prefix + name, absl::StrCat("has shape [", absl::StrJoin(entry->shape, ", "),
                                             "], the model and its quantization_config ask for [",
                                             absl::StrJoin(shape, ", "), "]"));
    }
    if (std::find(types.begin(), types.end(), entry->dtype) == types.end())
      return Bad(prefix + name,
                 absl::StrCat("is ", entry->dtype, ", not ", absl::StrJoin(types, " or ")));
    return entry;
  }
};

absl::StatusOr<std::optional<PackedMatrix>> PackedMatrix::Find(const Checkpoint& checkpoint,
                                                               const QuantizationConfig& config,
                                                               const std::string& name,
                                                               int64_t rows, int64_t columns) {
  PackedMatrix m;
  m.format_ = config.format;
  m.bits_ = config.bits;
  m.zeros_less_one_ = config.zeros_less_one;
  m.all_rows_ = rows;
  m.all_columns_ = columns;
  m.rows_ = {0, rows};
  m.columns_ = {0, columns};
  m.group_length_ = config.group;
  const Tensors tensors{checkpoint, std::string(absl::StripSuffix(name, "weight"))};
  const char* integers = nullptr;
  switch (config.format) {
    case PackedFormat::kNone:
      return std::nullopt;
    case PackedFormat::kPackQuantized:
      integers = "weight_packed";
      break;
    case PackedFormat::kIntQuantized:
      integers = "weight";
      break;
    case PackedFormat::kAwq:
    case PackedFormat::kGptq:
      integers = "qweight";
  }
  const Checkpoint::Entry found = checkpoint.FindEntry(tensors.prefix + integers);
  if (found.entry == nullptr) return std::nullopt;
  if (config.format == PackedFormat::kIntQuantized && found.entry->dtype != "I8")
    return std::nullopt;
  m.integers_ = found.entry;
  m.file_ = found.file;
  if (columns % kLength != 0) {
    return Bad(tensors.prefix + integers,
               absl::StrCat("has ", columns,
                            " inputs; quantized weights are supported where "
                            "their number is a multiple of ",
                            kLength));
  }
  const bool by_inputs =
      config.format == PackedFormat::kAwq || config.format == PackedFormat::kGptq;
  APB_RETURN_IF_ERROR(by_inputs ? m.FindByInputs(tensors) : m.FindCompressed(tensors));
  m.type_ = m.bits_ == 4 && !m.mixed_ ? DType::kI4Block : DType::kI8Block;
  m.scale_type_ = m.scales_->dtype == "F32"    ? DType::kF32
                  : m.scales_->dtype == "BF16" ? DType::kBF16
                                               : DType::kF16;
  return m;
}

// compressed-tensors: rows are outputs, scales [outputs, groups]. The tensors' shapes give bits and
// groups, so config_groups is not needed.
absl::Status PackedMatrix::FindCompressed(const Tensors& tensors) {
  const std::vector<std::string> floats = {"F32", "BF16", "F16"};
  const int64_t rows = all_rows_, columns = all_columns_;
  if (format_ == PackedFormat::kIntQuantized) {
    bits_ = 8;
    APB_RETURN_IF_ERROR(tensors.Get("weight", {rows, columns}, {"I8"}).status());
  } else {
    bits_ = integers_->shape == std::vector<int64_t>{rows, Words(columns, 4)} ? 4 : 8;
    APB_RETURN_IF_ERROR(
        tensors.Get("weight_packed", {rows, Words(columns, bits_)}, {"I32"}).status());
  }
  const SafetensorsEntry* scales = tensors.Optional("weight_scale");
  groups_ = scales != nullptr && scales->shape.size() == 2 ? scales->shape[1] : 1;
  group_length_ = groups_ > 0 ? (columns + groups_ - 1) / groups_ : 0;
  if (groups_ <= 0 || columns % groups_ != 0 || group_length_ % kLength != 0) {
    return Bad(
        tensors.prefix + "weight_scale",
        absl::StrCat("has ", groups_, " groups for ", columns,
                     " inputs; groups are supported whose length is a multiple of ", kLength));
  }
  APB_ASSIGN_OR_RETURN(scales_, tensors.Get("weight_scale", {rows, groups_}, floats));
  zeros_ = tensors.Optional("weight_zero_point");
  if (zeros_ != nullptr && zeros_->dtype == "I8") {
    APB_RETURN_IF_ERROR(tensors.Get("weight_zero_point", {rows, groups_}, {"I8"}).status());
  } else if (zeros_ != nullptr) {
    APB_RETURN_IF_ERROR(
        tensors.Get("weight_zero_point", {Words(rows, bits_), groups_}, {"I32"}).status());
  }
  order_ = tensors.Optional("weight_g_idx");
  if (order_ != nullptr) {
    APB_RETURN_IF_ERROR(tensors.Get("weight_g_idx", {columns}, {"I32"}).status());
    return CheckOrder(tensors.prefix + "weight_g_idx");
  }
  return absl::OkStatus();
}

// AutoAWQ and GPTQ: rows are inputs, scales [groups, outputs].
absl::Status PackedMatrix::FindByInputs(const Tensors& tensors) {
  const int64_t rows = all_rows_, columns = all_columns_;
  if (group_length_ == -1) group_length_ = columns;
  groups_ = (columns + group_length_ - 1) / group_length_;
  if (rows % (32 / bits_) != 0) {
    return Bad(tensors.prefix + "qweight",
               absl::StrCat("has ", rows, " outputs, which do not fill words of 32 bits"));
  }
  const bool awq = format_ == PackedFormat::kAwq;
  const std::vector<int64_t> shape = awq ? std::vector<int64_t>{columns, Words(rows, 4)}
                                         : std::vector<int64_t>{Words(columns, bits_), rows};
  APB_RETURN_IF_ERROR(tensors.Get("qweight", shape, {"I32"}).status());
  APB_ASSIGN_OR_RETURN(scales_, tensors.Get("scales", {groups_, rows}, {"F32", "BF16", "F16"}));
  APB_ASSIGN_OR_RETURN(zeros_, tensors.Get("qzeros", {groups_, Words(rows, bits_)}, {"I32"}));
  order_ = awq ? nullptr : tensors.Optional("g_idx");
  if (order_ == nullptr) return absl::OkStatus();
  APB_RETURN_IF_ERROR(tensors.Get("g_idx", {columns}, {"I32"}).status());
  return CheckOrder(tensors.prefix + "g_idx");
}

absl::Status PackedMatrix::CheckOrder(const std::string& tensor) {
  for (int64_t c = 0; c < all_columns_; ++c) {
    const auto group = static_cast<int32_t>(WordAt(*order_, c));
    if (group < 0 || group >= groups_)
      return Bad(tensor, absl::StrCat("has group ", group, " of ", groups_));
    mixed_ |= group != c / group_length_;
  }
  if (!mixed_) order_ = nullptr;
  return absl::OkStatus();
}

absl::Status PackedMatrix::Cut(const Range& rows, const Range& columns) {
  if (columns.begin % kLength != 0 || columns.length() % kLength != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("inputs ", columns.begin, " to ", columns.end, " of ", all_columns_,
                     " are a rank's share of quantized weights, which are divided at multiples of ",
                     kLength, " only: choose another --tensor-parallel"));
  }
  rows_ = {rows_.begin + rows.begin, rows_.begin + rows.end};
  columns_ = {columns_.begin + columns.begin, columns_.begin + columns.end};
  return absl::OkStatus();
}

template <PackedFormat kFormat>
int PackedMatrix::Integer(int64_t row, int64_t column) const {
  if constexpr (kFormat == PackedFormat::kIntQuantized)
    return static_cast<int8_t>(integers_->data[row * all_columns_ + column]) + 128;
  const int64_t word = WordOf(column, bits_);
  if constexpr (kFormat == PackedFormat::kPackQuantized)
    return FieldOf(WordAt(*integers_, row * WordOf(all_columns_, bits_) + word),
                   PlaceOf(column, bits_), bits_);
  if constexpr (kFormat == PackedFormat::kAwq)
    return FieldOf(WordAt(*integers_, column * (all_rows_ / 8) + row / 8), kAwqPlaces[row % 8], 4);
  return FieldOf(WordAt(*integers_, word * all_rows_ + row), PlaceOf(column, bits_), bits_);
}

int PackedMatrix::Zero(int64_t row, int64_t group) const {
  const int middle = 1 << (bits_ - 1);
  if (zeros_ == nullptr) return middle;
  const int64_t word = WordOf(row, bits_), words = WordOf(all_rows_, bits_);
  if (format_ == PackedFormat::kAwq)
    return FieldOf(WordAt(*zeros_, group * words + word), kAwqPlaces[row % 8], 4);
  if (format_ == PackedFormat::kGptq) {
    // AutoGPTQ subtracted `ones` from the whole word of zeros, with borrows between the zeros; so
    // `ones` is added to the whole word.
    const uint32_t ones = !zeros_less_one_ ? 0 : bits_ == 4 ? 0x11111111 : 0x01010101;
    return FieldOf(WordAt(*zeros_, group * words + word) + ones, PlaceOf(row, bits_), bits_);
  }
  if (zeros_->dtype == "I8")
    return static_cast<int8_t>(zeros_->data[row * groups_ + group]) + middle;
  return FieldOf(WordAt(*zeros_, word * groups_ + group), PlaceOf(row, bits_), bits_);
}

float PackedMatrix::Scale(int64_t row, int64_t group) const {
  const bool by_inputs = format_ == PackedFormat::kAwq || format_ == PackedFormat::kGptq;
  const int64_t at = by_inputs ? group * all_rows_ + row : row * groups_ + group;
  uint32_t bits = 0;
  std::memcpy(&bits, scales_->data + at * SizeOf(scale_type_), SizeOf(scale_type_));
  float scale = 0;
  ConvertFloats(scale_type_, &bits, DType::kF32, &scale, 1);
  return scale;
}

int64_t PackedMatrix::GroupOf(int64_t column) const {
  return order_ == nullptr ? column / group_length_ : WordAt(*order_, column);
}

// Converts the 32 weights from (row, column) on. They are of one group unless mixed_.
template <PackedFormat kFormat>
absl::Status PackedMatrix::ConvertBlock(int64_t row, int64_t column, void* block) const {
  std::array<uint8_t, kLength> n;
  for (int i = 0; i < kLength; ++i) n[i] = static_cast<uint8_t>(Integer<kFormat>(row, column + i));
  const int64_t group = GroupOf(column);
  const float scale = Scale(row, group);
  const int zero = Zero(row, group);
  const kernels::Float16 half = kernels::FloatToFloat16(scale);
  if (!mixed_ && !(std::abs(scale) <= 65504.0f))
    return absl::InvalidArgumentError(
        "has a scale that is not finite or too large for half precision");
  if (type_ == DType::kI4Block) {
    auto& out = *static_cast<kernels::I4Block*>(block);
    out.scale = half;
    out.zero = kernels::FloatToFloat16(static_cast<float>(zero));
    kernels::PackI4(n.data(), out.q);
    return absl::OkStatus();
  }
  if (!mixed_ && zero == 128) {
    auto& out = *static_cast<kernels::I8Block*>(block);
    out.scale = half;
    for (int i = 0; i < kLength; ++i) out.q[i] = static_cast<int8_t>(n[i] - 128);
    return absl::OkStatus();
  }
  std::array<float, kLength> weights;
  for (int i = 0; i < kLength; ++i) {
    const int64_t of = GroupOf(column + i);
    weights[i] = Scale(row, of) * static_cast<float>(n[i] - Zero(row, of));
  }
  if (kernels::EncodeBlocks(weights.data(), kLength, type_, block)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "has a scale that is not finite or too large for half precision");
}

template <PackedFormat kFormat>
absl::Status PackedMatrix::ConvertRows(int64_t begin, const TensorView& target) const {
  for (int64_t r = 0; r < target.rows(); ++r) {
    const TensorView row = target.Rows(r, r + 1);
    for (int64_t c = 0; c < columns(); c += kLength) {
      APB_RETURN_IF_ERROR(ConvertBlock<kFormat>(rows_.begin + begin + r, columns_.begin + c,
                                                row.Columns(c, c + kLength).data));
    }
  }
  return absl::OkStatus();
}

absl::Status PackedMatrix::Convert(int64_t begin, const TensorView& target) const {
  switch (format_) {
    case PackedFormat::kPackQuantized:
      return ConvertRows<PackedFormat::kPackQuantized>(begin, target);
    case PackedFormat::kIntQuantized:
      return ConvertRows<PackedFormat::kIntQuantized>(begin, target);
    case PackedFormat::kAwq:
      return ConvertRows<PackedFormat::kAwq>(begin, target);
    default:
      return ConvertRows<PackedFormat::kGptq>(begin, target);
  }
}

}  // namespace apb::model
