// The interface of a fuzz target: a function that takes any bytes, and inputs to start from. Each
// target is linked twice: with replay_main.cc into a program that CTest runs, and (APB_FUZZ, Clang)
// with libFuzzer.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace apb::fuzz {

// Valid inputs. They are made by code, not stored, so that they follow changes of the format.
std::vector<std::string> Seeds();
// Whether the code under test accepted `input`. Aborts the process if a property does not hold.
bool Accepts(std::string_view input);

// Checks a property of the code under test.
#define APB_PROPERTY(condition)                                                           \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)

}  // namespace apb::fuzz
