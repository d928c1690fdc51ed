// What a request asks of sampling, and the token that is drawn. The engine takes resolved values:
// the server fills in the defaults of clients. Pure data: the scheduler and the step plan use it
// too.
#pragma once

#include <cstdint>
#include <utility>
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
  std::vector<int32_t> stop_tokens;  // each ends the sequence (clients do not see the token)
  int32_t logprobs = -1;             // number of alternatives to report; -1 = off
  int32_t min_tokens = 0;            // no stop token is drawn before so many tokens
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;                           // of the token; set if params.logprobs >= 0
  std::vector<std::pair<int32_t, float>> top;  // params.logprobs alternatives, best first
};

// Calls visit(name, field) for every field; the name is that of the field in
// common.v1.SamplingParams. The codec of Submit, the step plan's bytes and the checks of a request
// go by this list.
template <typename Params, typename Visit>
void ForEachField(Params& p, Visit&& visit) {
  visit("max_tokens", p.max_tokens);
  visit("temperature", p.temperature);
  visit("top_p", p.top_p);
  visit("top_k", p.top_k);
  visit("min_p", p.min_p);
  visit("seed", p.seed);
  visit("presence_penalty", p.presence_penalty);
  visit("frequency_penalty", p.frequency_penalty);
  visit("repetition_penalty", p.repetition_penalty);
  visit("stop_token_ids", p.stop_tokens);
  visit("logprobs", p.logprobs);
  visit("min_tokens", p.min_tokens);
}

}  // namespace apb::sampling
