// Matrix products of many rows by oneDNN, with the primitives of recent shapes kept. A build
// without oneDNN links library_products_none.cc, whose Run never computes.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace apb::kernels {

class LibraryProducts {
 public:
  LibraryProducts();
  ~LibraryProducts();
  // As Backend::Linear, on so many OpenMP threads. False, and nothing is computed, where the
  // library has no such product on this machine (DNNL_MAX_CPU_ISA can take them away).
  bool Run(const LinearArgs& args, int threads);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace apb::kernels
