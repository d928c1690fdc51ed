#include "engine/sampling/fidelity.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"

namespace apb::sampling {
namespace {

double LogTotal(std::span<const float> logits) {
  const double highest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float x : logits) total += std::exp(x - highest);
  return highest + std::log(total);
}

}  // namespace

Fidelity CompareDistributions(std::span<const float> exact, std::span<const float> approx,
                              int32_t token) {
  APB_CHECK(exact.size() == approx.size());
  APB_CHECK(token >= 0 && static_cast<size_t>(token) < exact.size());
  const double exact_total = LogTotal(exact), approx_total = LogTotal(approx);
  Fidelity f;
  for (size_t v = 0; v < exact.size(); ++v) {
    if (std::isinf(exact[v])) continue;  // p = 0 adds nothing
    const double log_p = exact[v] - exact_total;
    f.kl += std::exp(log_p) * (log_p - (approx[v] - approx_total));
  }
  f.kl = std::max(0.0, f.kl);  // rounding
  f.same_top = std::max_element(exact.begin(), exact.end()) - exact.begin() ==
               std::max_element(approx.begin(), approx.end()) - approx.begin();
  f.exact_nats = exact_total - exact[token];
  f.approx_nats = approx_total - approx[token];
  return f;
}

}  // namespace apb::sampling
