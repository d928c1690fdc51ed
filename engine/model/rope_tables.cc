#include "engine/model/rope_tables.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace apb::model {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

double Llama3Frequency(const RopeConfig& c, double frequency) {
  const double wavelength = kTwoPi / frequency;
  if (wavelength > c.original_max_positions / c.low_freq_factor) return frequency / c.factor;
  if (wavelength < c.original_max_positions / c.high_freq_factor) return frequency;
  const double smooth = (c.original_max_positions / wavelength - c.low_freq_factor) /
                        (c.high_freq_factor - c.low_freq_factor);
  return (1.0 - smooth) * frequency / c.factor + smooth * frequency;
}

// The dimension whose angle makes `rotations` full turns within the original context length.
double CorrectionDimension(const RopeConfig& c, double rotations, double dim) {
  return dim * std::log(c.original_max_positions / (rotations * kTwoPi)) /
         (2.0 * std::log(c.theta));
}

double Mscale(double factor, double m) {
  return factor <= 1.0 ? 1.0 : 0.1 * m * std::log(factor) + 1.0;
}

}  // namespace

RopeTable MakeRopeTable(const RopeConfig& c, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  const double dim = static_cast<double>(head_dim);
  RopeTable table;
  double low = 0, high = 0;
  if (c.type == RopeType::kYarn) {
    low = CorrectionDimension(c, c.beta_fast, dim);
    high = CorrectionDimension(c, c.beta_slow, dim);
    if (c.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, dim - 1);
    if (low == high) high += 0.001;
    double attention = c.attention_factor;
    if (attention == 0.0) {
      attention = c.mscale != 0.0 && c.mscale_all_dim != 0.0
                      ? Mscale(c.factor, c.mscale) / Mscale(c.factor, c.mscale_all_dim)
                      : Mscale(c.factor, 1.0);
    }
    table.attention_factor = static_cast<float>(attention);
  }
  for (int64_t i = 0; i < half; ++i) {
    double frequency = std::pow(c.theta, -2.0 * static_cast<double>(i) / dim);
    switch (c.type) {
      case RopeType::kDefault:
        break;
      case RopeType::kLinear:
        frequency /= c.factor;
        break;
      case RopeType::kLlama3:
        frequency = Llama3Frequency(c, frequency);
        break;
      case RopeType::kYarn: {
        const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        frequency = frequency / c.factor * ramp + frequency * (1.0 - ramp);
        break;
      }
    }
    table.inv_freq.push_back(static_cast<float>(frequency));
  }
  return table;
}

}  // namespace apb::model
