// Matrix products of many rows by oneDNN. Keeps the primitives of recent shapes. A build without
// oneDNN links library_products_none.cc, whose Run refuses every product.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace apb::kernels {

class LibraryProducts {
 public:
  LibraryProducts();
  ~LibraryProducts();
  // Backend::Linear on `threads` OpenMP threads. False, without computing anything, if the library
  // lacks this product on this machine (DNNL_MAX_CPU_ISA can disable some).
  bool Run(const LinearArgs& args, int threads);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace apb::kernels
