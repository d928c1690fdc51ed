#include "tests/bench/bench_shapes.h"

#include "absl/strings/str_cat.h"

namespace apb::bench {

absl::StatusOr<model::ModelConfig> NamedShape(std::string_view name) {
  struct Shape {
    std::string_view name;
    int32_t layers;
    int64_t hidden, query_heads, kv_heads, head_dim, mlp, vocabulary;
  };
  static constexpr Shape kShapes[] = {{"tiny", 4, 256, 4, 2, 64, 512, 2048},
                                      {"125m", 12, 768, 12, 4, 64, 2048, 32000},
                                      {"1b", 16, 2048, 32, 8, 64, 8192, 128256},
                                      {"8b", 32, 4096, 32, 8, 128, 14336, 128256}};
  std::string known;
  for (const Shape& shape : kShapes) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", std::string(shape.name));
    if (shape.name != name) continue;
    model::ModelConfig config;
    config.architecture = "LlamaForCausalLM";
    config.vocab_size = shape.vocabulary;
    config.hidden_size = shape.hidden;
    config.mlp_size = shape.mlp;
    config.layers = shape.layers;
    config.query_heads = shape.query_heads;
    config.kv_heads = shape.kv_heads;
    config.head_dim = shape.head_dim;
    config.max_positions = 1 << 21;
    config.rms_norm_epsilon = 1e-5;
    config.rope.theta = 500000;
    config.dtype = kernels::DType::kBF16;
    return config;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("shape '", std::string(name), "' is unknown (", known, " are known)"));
}

}  // namespace apb::bench
