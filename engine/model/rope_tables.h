// Inverse frequencies of rotary embeddings, scaled as the checkpoint's rope_scaling says.
#pragma once

#include <vector>

#include "engine/model/model_config.h"

namespace apb::model {

struct RopeTable {
  std::vector<float> inv_freq;  // [head_dim / 2]
  float attention_factor = 1.0f;
};

// Computed in double.
//   default   theta^(-2i/d)
//   linear    divided by `factor`
//   llama3    low frequencies divided by `factor`, with a smooth band to the high ones
//   yarn      interpolated by wavelength, with an attention factor (arXiv 2309.00071, section 3.4)
RopeTable MakeRopeTable(const RopeConfig& config, int64_t head_dim);

}  // namespace apb::model
