// Which tensors a model is made of: their names in a checkpoint, their shapes, what a tensor
// parallel share has of them, and where the views of them go.
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
  std::vector<int64_t> shape;  // of the whole model's; an extent of -1 takes any
  kernels::TensorView* out = nullptr;
  // Of the numbers that a random model has there.
  float deviation = 0;
  float mean = 0;
  bool joins = false;       // copied right behind the one before, so that one product computes both
  bool multiplies = false;  // the weight of a product, which may be quantized
  // What a share has.
  bool absent = false;         // nothing
  std::optional<Range> rows;   // not all
  std::vector<Range> columns;  // these, one behind the other; empty: all

  // Set when it has been found. `out` then shows what the share has of the whole where it is (of
  // columns in several ranges, all columns), unless it is packed.
  const SafetensorsFile* file = nullptr;  // null: memory that goes away
  std::optional<PackedMatrix> packed;
  kernels::DType type = kernels::DType::kBF16;  // of the weights that are computed on

  int64_t row_count() const;     // of the share
  int64_t column_count() const;  // 1 of a vector
};

// The share's part of a tensor of the whole model; absent if it has none.
kernels::TensorView ShareOf(const WantedTensor& wanted, const kernels::TensorView& whole);

// Embedding, final norm and output projection of a share with this part of the model; of tied
// embeddings, an output projection of its own only if `own_output`.
std::vector<WantedTensor> TensorsOutsideLayers(const ModelConfig& config, const PartShape& part,
                                               bool own_output, kernels::TensorView* embedding,
                                               kernels::TensorView* final_norm,
                                               kernels::TensorView* output);

// A layer of a share; with a retaining head of a width (0 = none, -1 = any).
std::vector<WantedTensor> TensorsOfLayer(const ModelConfig& config, int index,
                                         const PartShape& part, const Share& share,
                                         int64_t retaining_width, LayerWeights& layer);

}  // namespace apb::model
