// Goal: no safetensors file crashes the parser. Method: an input is a whole file. Property: the
// tensors of an accepted file lie within it.
#include <cstdint>
#include <cstring>

#include "engine/model/safetensors.h"
#include "tests/fuzz/fuzz_target.h"

namespace apb::fuzz {
namespace {

std::string File(const std::string& header, size_t data_bytes) {
  const uint64_t size = header.size();
  std::string file(sizeof size, '\0');
  std::memcpy(file.data(), &size, sizeof size);
  return file + header + std::string(data_bytes, 'x');
}

}  // namespace

std::vector<std::string> Seeds() {
  return {
      File("{}", 0),
      File(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 24),
      File(R"({"__metadata__":{"format":"pt"},)"
           R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},)"
           R"("c":{"dtype":"I64","shape":[1,1,1],"data_offsets":[8,16]},)"
           R"("d":{"dtype":"U8","shape":[0,7],"data_offsets":[16,16]}}  )",
           16),
  };
}

bool Accepts(std::string_view input) {
  const auto file = model::SafetensorsFile::Parse(input, "fuzzed");
  if (!file.ok()) {
    APB_PROPERTY(absl::IsInvalidArgument(file.status()));
    APB_PROPERTY(file.status().message().find("fuzzed") != std::string_view::npos);
    return false;
  }
  const auto* begin = reinterpret_cast<const std::byte*>(input.data());
  for (const auto& [name, tensor] : (*file)->tensors()) {
    APB_PROPERTY(tensor.data >= begin && tensor.size_bytes <= input.size());
    APB_PROPERTY(tensor.data + tensor.size_bytes <= begin + input.size());
    APB_PROPERTY(tensor.shape.size() <= 8);
  }
  return true;
}

}  // namespace apb::fuzz
