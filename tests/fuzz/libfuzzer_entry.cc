// Hands libFuzzer's inputs to the fuzz target.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  apb::fuzz::Accepts({reinterpret_cast<const char*>(data), size});
  return 0;
}
