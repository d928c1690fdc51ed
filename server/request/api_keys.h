// Checks the API keys of clients.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace apb::request {

// Whether `given` is one of the keys; true without keys. Takes the same time for every wrong key of
// one length.
inline bool IsAllowed(const std::vector<std::string>& keys, std::string_view given) {
  bool allowed = keys.empty();
  for (const std::string& key : keys) {
    unsigned char difference = key.size() == given.size() ? 0 : 1;
    for (size_t i = 0; i < key.size() && i < given.size(); ++i) difference |= key[i] ^ given[i];
    allowed |= difference == 0;
  }
  return allowed;
}

// The owner whose contexts the holder of this key may use. Without keys everybody shares one owner.
inline std::string OwnerOf(const std::vector<std::string>& keys, std::string_view given) {
  return keys.empty() ? std::string() : std::string(given);
}

}  // namespace apb::request
