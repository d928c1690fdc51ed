// A short fingerprint of the bytes of a file. Server and workers compare that of config.json, so
// that a group never serves a model other than the one that the server tokenizes for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/strings/str_format.h"

namespace apb::base {

// FNV-1a of 64 bits in lowercase hexadecimal.
inline std::string Fingerprint(std::string_view bytes) {
  uint64_t hash = 14695981039346656037ull;
  for (const char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  return absl::StrFormat("%016x", hash);
}

}  // namespace apb::base
