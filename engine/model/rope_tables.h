// Inverse frequencies of rotary embeddings, as the checkpoint's rope_scaling asks.
#pragma once

#include <vector>

#include "engine/model/model_config.h"

namespace apb::model {

struct RopeTable {
  std::vector<float> inv_freq;  // [head_dim / 2]
  float attention_factor = 1.0f;
};

// Computed in double. default: theta^(-2i/d); linear: divided by factor; llama3: low frequencies
// divided by factor, with a smooth band; yarn (arXiv 2309.00071, section 3.4): interpolation by
// wavelength and an attention factor.
RopeTable MakeRopeTable(const RopeConfig& config, int64_t head_dim);

}  // namespace apb::model
