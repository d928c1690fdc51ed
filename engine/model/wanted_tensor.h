// The tensors of a model: their names in a checkpoint, their shapes, a tensor parallel share's part
// of them, and the views that are to show them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/model/layer_weights.h"
#include "engine/model/model_config.h"
#include "engine/model/packed_matrix.h"

namespace apb::model {

struct WantedTensor {
  std::string name;
  std::vector<int64_t> shape;  // of the whole tensor; -1 matches any extent
  kernels::TensorView* out = nullptr;
  // Distribution of the numbers of a random model.
  float deviation = 0;
  float mean = 0;
  bool joins = false;  // copied right behind the tensor before, so that one product computes both
  bool multiplies = false;  // the weight of a product, which may be quantized
  // The share's part.
  bool absent = false;         // the share has nothing of the tensor
  std::optional<Range> rows;   // the share's rows; nullopt: all
  std::vector<Range> columns;  // the share's columns, range after range; empty: all

  // Set when the tensor has been found. Unless it is packed, `out` then shows the share's part in
  // the file (all columns if `columns` has several ranges).
  const SafetensorsFile* file = nullptr;  // null: the numbers are in temporary memory
  std::optional<PackedMatrix> packed;
  kernels::DType type = kernels::DType::kBF16;  // of the weights in the backend's memory

  // Extents of the share's part; a vector has one column.
  int64_t row_count() const;
  int64_t column_count() const;
};

// The share's part of the tensor `whole`; absent if the share has none. All columns if
// `wanted.columns` has several ranges.
kernels::TensorView ShareOf(const WantedTensor& wanted, const kernels::TensorView& whole);

// Embedding, final norm and output projection of the share that has `part` of the model. With tied
// embeddings, the output projection is a tensor of its own only if `own_output`.
std::vector<WantedTensor> TensorsOutsideLayers(const ModelConfig& config, const PartShape& part,
                                               bool own_output, kernels::TensorView* embedding,
                                               kernels::TensorView* final_norm,
                                               kernels::TensorView* output);

// The tensors of layer `index` of the share, with a retaining head of `retaining_width` (0: none,
// -1: any width).
std::vector<WantedTensor> TensorsOfLayer(const ModelConfig& config, int index,
                                         const PartShape& part, const Share& share,
                                         int64_t retaining_width, LayerWeights& layer);

}  // namespace apb::model
