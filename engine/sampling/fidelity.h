// How far an approximate distribution of the next token is from the exact one.
#pragma once

#include <cstdint>
#include <span>

namespace apb::sampling {

struct Fidelity {
  double kl = 0;           // KL(exact ‖ approximate) in nats, >= 0
  bool same_top = false;   // both have the same likeliest token (the first of equal ones)
  double exact_nats = 0;   // -log p(token), exact
  double approx_nats = 0;  // the same, approximate
};

// Compares two rows of raw logits [V] over the same vocabulary, at the token that follows. -inf
// means that a token cannot come; if it can come exactly but not approximately, kl is +inf. Both
// rows have a finite logit, and no NaN or +inf (Sampler refuses those).
Fidelity CompareDistributions(std::span<const float> exact, std::span<const float> approx,
                              int32_t token);

}  // namespace apb::sampling
