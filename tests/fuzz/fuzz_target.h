// What a fuzz target gives: one function that takes whatever bytes, and inputs to begin with. It is
// linked twice: with replay_main.cc into a program that CTest runs, and (APB_FUZZ, Clang) with
// libFuzzer.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace apb::fuzz {

// Valid inputs. They are made here, not stored, so that they do not go stale with the format.
std::vector<std::string> Seeds();
// Whether the code under test accepted `input`. Stops the process where a property does not hold.
bool Accepts(std::string_view input);

// A property of the code under test.
#define APB_PROPERTY(condition)                                                           \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)

}  // namespace apb::fuzz
