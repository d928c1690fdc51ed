// For builds without oneDNN: Run refuses every product.
#include "kernels/cpu/library_products.h"

namespace apb::kernels {

struct LibraryProducts::Impl {};

LibraryProducts::LibraryProducts() = default;
LibraryProducts::~LibraryProducts() = default;
bool LibraryProducts::Run(const LinearArgs&, int) { return false; }

}  // namespace apb::kernels
