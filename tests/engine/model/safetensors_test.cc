// Goal: every malformed safetensors file is refused with a message, and no byte outside the file is
// read. Method: crafted cases, and 20,000 random mutations of a valid file (under the asan preset,
// they also check bounds).
#include "engine/model/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace apb::model {
namespace {

std::string File(const std::string& header, size_t data_bytes) {
  const uint64_t size = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &size, 8);
  return bytes + header + std::string(data_bytes, '\1');
}

TEST(Safetensors, ReadsTensorsAndMetadata) {
  const std::string bytes = File(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]},"c":{"dtype":"F32","shape":[0,4],"data_offsets":[26,26]}})",
      26);
  auto file = SafetensorsFile::Parse(bytes, "test");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors().at("a").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*file)->tensors().at("b").size_bytes, 2u);
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
}

TEST(Safetensors, RefusesMalformedFiles) {
  const std::string one = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const std::pair<std::string, const char*> cases[] = {
      {"", "shorter"},
      {std::string("\xff\xff\xff\xff\xff\xff\xff\xff", 8), "exceeds the limit"},
      {File("{" + one + "}", 8).substr(0, 20), "truncated"},
      {File("[]", 0), "begin with"},
      {File("{" + one, 8), "JSON"},
      {File("{" + one + "}", 7), "outside"},
      {File("{" + one + "}", 9), "behind the last"},
      {File("{" + one + "," + one + "}", 8), "twice"},
      {File(R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", 8), "unknown dtype"},
      {File(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), "natural"},
      {File(
           R"({"a":{"dtype":"F32","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,8]}})",
           8),
       "too large"},
      {File(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8), "need 12 bytes"},
      {File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8), "outside"},
      {File(R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}})", 8),
       "dimensions"},
      {File(R"({"a":{"dtype":"F32","shape":[2]}})", 8), "needs dtype"},
      {File(
           R"({"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
           8),
       "overlap"},
      {File(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
           8),
       "hole"},
      {File("{\"a\":" + std::string(100000, '[') + "}", 0), "JSON"},
      {File("{\"\xff\":1}", 0), "JSON"},
  };
  for (const auto& [bytes, message] : cases) {
    auto file = SafetensorsFile::Parse(bytes, "test");
    ASSERT_FALSE(file.ok()) << message;
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(file.status().message().find(message), std::string::npos) << file.status();
  }
  EXPECT_EQ(SafetensorsFile::Open("/nonexistent/x").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(SafetensorsFile::Open("/").ok());
}

TEST(Safetensors, SurvivesRandomMutations) {
  const std::string valid = File(
      R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})",
      32);
  ASSERT_TRUE(SafetensorsFile::Parse(valid, "valid").ok());
  std::mt19937 rng(1);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = valid;
    for (int m = 1 + static_cast<int>(rng() % 3); m > 0; --m) {
      if (bytes.empty()) break;
      const size_t at = rng() % bytes.size();
      switch (rng() % 4) {
        case 0:
          bytes[at] = static_cast<char>(rng());
          break;
        case 1:
          bytes.erase(at, 1 + rng() % 8);
          break;
        case 2:
          bytes.insert(at, std::string(1 + rng() % 4, "0123456789[]{},\":"[rng() % 17]));
          break;
        default:
          bytes.resize(at + 1);
      }
    }
    auto file = SafetensorsFile::Parse(bytes, "mutated");
    if (!file.ok()) continue;
    ++accepted;
    uint64_t sum = 0;  // reads every byte of every tensor
    for (const auto& [name, entry] : (*file)->tensors()) {
      for (size_t b = 0; b < entry.size_bytes; ++b) sum += static_cast<uint8_t>(entry.data[b]);
    }
    EXPECT_LT(sum, 1u << 20);
  }
  EXPECT_LT(accepted, 20000);
}

}  // namespace
}  // namespace apb::model
