// Matrix products by oneDNN, with the primitives of recent shapes kept.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "kernels/backend.h"

namespace apb::kernels {

class LinearCache {
 public:
  LinearCache();
  ~LinearCache();
  // As Backend::Linear; oneDNN takes as many threads as OpenMP would give the calling thread.
  absl::Status Run(const LinearArgs& args);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace apb::kernels
