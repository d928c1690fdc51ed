// How the next token is drawn. Pure data: the scheduler and the server's wire format use it too.
#pragma once

#include <cstdint>
#include <vector>

namespace apb::sampling {

struct SamplingParams {
  int32_t max_tokens = 16;
  float temperature = 1.0f;  // 0 = greedy
  float top_p = 1.0f;        // 1 = off
  int32_t top_k = 0;         // 0 = off
  float min_p = 0.0f;        // 0 = off
  uint64_t seed = 0;
  float presence_penalty = 0.0f;     // over generated tokens
  float frequency_penalty = 0.0f;    // over generated tokens
  float repetition_penalty = 1.0f;   // over prompt and generated tokens
  std::vector<int32_t> stop_tokens;  // end the sequence (the token itself is not shown)
  int32_t logprobs = -1;             // alternatives to report; -1 = off
  int32_t min_tokens = 0;            // stop tokens are barred before
};

}  // namespace apb::sampling
