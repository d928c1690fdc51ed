#include "engine/model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace apb::model {
namespace {

using nlohmann::json;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDimensions = 8;

// Bytes of one element; 0 if the format has no such type.
size_t ElementSize(std::string_view dtype) {
  static const std::map<std::string_view, size_t> sizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
      {"F32", 4},  {"I64", 8}, {"U64", 8}, {"F64", 8},     {"C64", 8}};
  auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

// Refuses duplicate keys and deep nesting, both of which nlohmann's DOM would accept.
class HeaderParser : public nlohmann::json_sax<json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(int64_t) override { return true; }
  bool number_unsigned(uint64_t) override { return true; }
  bool number_float(double, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(json::binary_t&) override { return true; }
  bool start_object(size_t) override {
    keys_.emplace_back();
    return keys_.size() <= 4;
  }
  bool key(std::string& key) override {
    if (keys_.back().insert(key).second) return true;
    duplicate_ = key;
    return false;
  }
  bool end_object() override {
    keys_.pop_back();
    return true;
  }
  bool start_array(size_t) override { return ++arrays_ <= 2; }
  bool end_array() override {
    --arrays_;
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }
  const std::string& duplicate() const { return duplicate_; }

 private:
  std::vector<std::set<std::string>> keys_;
  int arrays_ = 0;
  std::string duplicate_;
};

absl::Status Bad(const std::string& name, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(name, ": not a valid safetensors file: ", what));
}

absl::StatusOr<SafetensorsEntry> ReadEntry(const json& value, std::string_view data,
                                           size_t* begin) {
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets") || !value["dtype"].is_string() ||
      !value["shape"].is_array() || !value["data_offsets"].is_array() ||
      value["data_offsets"].size() != 2) {
    return absl::InvalidArgumentError("needs dtype, shape and data_offsets");
  }
  SafetensorsEntry entry;
  entry.dtype = value["dtype"].get<std::string>();
  const size_t element = ElementSize(entry.dtype);
  if (element == 0) return absl::InvalidArgumentError(absl::StrCat("unknown dtype ", entry.dtype));
  if (value["shape"].size() > kMaxDimensions)
    return absl::InvalidArgumentError("more than 8 dimensions");
  uint64_t bytes = element;
  for (const json& extent : value["shape"]) {
    if (!extent.is_number_unsigned())
      return absl::InvalidArgumentError("shape is not made of natural numbers");
    const uint64_t n = extent.get<uint64_t>();
    if (n > INT64_MAX || __builtin_mul_overflow(bytes, n, &bytes)) {
      return absl::InvalidArgumentError("shape is too large");
    }
    entry.shape.push_back(static_cast<int64_t>(n));
  }
  const json& first = value["data_offsets"][0];
  const json& last = value["data_offsets"][1];
  if (!first.is_number_unsigned() || !last.is_number_unsigned()) {
    return absl::InvalidArgumentError("data_offsets are not natural numbers");
  }
  const uint64_t b = first.get<uint64_t>(), e = last.get<uint64_t>();
  if (b > e || e > data.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data_offsets [", b, ", ", e, ") lie outside the ", data.size(), " bytes of data"));
  }
  if (e - b != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape and dtype need ", bytes, " bytes, data_offsets give ", e - b));
  }
  entry.data = reinterpret_cast<const std::byte*>(data.data()) + b;
  entry.size_bytes = bytes;
  *begin = b;
  return entry;
}

}  // namespace

absl::Status SafetensorsFile::ParseHeader(std::string_view bytes, const std::string& name) {
  if (bytes.size() < 8) return Bad(name, "shorter than its 8-byte length field");
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  if (header_size > kMaxHeaderBytes)
    return Bad(name, absl::StrCat("header of ", header_size, " bytes exceeds the limit of ",
                                  kMaxHeaderBytes));
  if (header_size > bytes.size() - 8)
    return Bad(name, absl::StrCat("header of ", header_size,
                                  " bytes is longer than the file (truncated?)"));
  const std::string_view text = bytes.substr(8, header_size), data = bytes.substr(8 + header_size);
  if (text.empty() || text[0] != '{') return Bad(name, "header does not begin with '{'");
  HeaderParser parser;
  if (!json::sax_parse(text, &parser)) {
    return Bad(name, parser.duplicate().empty()
                         ? "header is not JSON of the expected form"
                         : absl::StrCat("key '", parser.duplicate(), "' occurs twice"));
  }
  const json header = json::parse(text, nullptr, false);
  if (!header.is_object()) return Bad(name, "header is not a JSON object");
  std::vector<std::pair<size_t, size_t>> spans;
  for (const auto& [key, value] : header.items()) {
    if (key == "__metadata__") {
      if (!value.is_object()) return Bad(name, "__metadata__ is not an object");
      for (const auto& [k, v] : value.items()) {
        if (!v.is_string()) return Bad(name, "__metadata__ holds something other than strings");
        metadata_[k] = v.get<std::string>();
      }
      continue;
    }
    size_t begin = 0;
    absl::StatusOr<SafetensorsEntry> entry = ReadEntry(value, data, &begin);
    if (!entry.ok())
      return Bad(name, absl::StrCat("tensor '", key, "': ", entry.status().message()));
    if (entry->size_bytes > 0) spans.emplace_back(begin, begin + entry->size_bytes);
    tensors_.emplace(key, *std::move(entry));
  }
  std::sort(spans.begin(), spans.end());
  size_t at = 0;
  for (const auto& [begin, end] : spans) {
    if (begin < at) return Bad(name, absl::StrCat("two tensors overlap at data byte ", begin));
    if (begin > at) return Bad(name, absl::StrCat("hole in the data at byte ", at));
    at = end;
  }
  if (at != data.size())
    return Bad(name, absl::StrCat(data.size() - at, " bytes behind the last tensor"));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Parse(std::string_view bytes,
                                                                        const std::string& name) {
  auto file = std::unique_ptr<SafetensorsFile>(new SafetensorsFile());
  APB_RETURN_IF_ERROR(file->ParseHeader(bytes, name));
  return file;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  struct stat info = {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size <= 0) {
    close(fd);
    return Bad(path, "empty, or not a regular file");
  }
  auto file = std::unique_ptr<SafetensorsFile>(new SafetensorsFile());
  file->path_ = path;
  file->descriptor_ = fd;
  file->mapping_size_ = static_cast<size_t>(info.st_size);
  file->mapping_ = mmap(nullptr, file->mapping_size_, PROT_READ, MAP_SHARED, fd, 0);
  if (file->mapping_ == MAP_FAILED) {
    file->mapping_ = nullptr;
    return absl::ResourceExhaustedError(absl::StrCat(path, ": mmap: ", std::strerror(errno)));
  }
  APB_RETURN_IF_ERROR(
      file->ParseHeader({static_cast<const char*>(file->mapping_), file->mapping_size_}, path));
  return file;
}

absl::Status SafetensorsFile::Read(const std::byte* from, size_t size, std::byte* to) const {
  off_t at = from - static_cast<const std::byte*>(mapping_);
  while (size > 0) {
    const ssize_t got = pread(descriptor_, to, size, at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return absl::DataLossError(
          absl::StrCat("cannot be read from ", path_, " at byte ", at, ": ",
                       got < 0 ? std::strerror(errno) : "the file ends before (was it changed?)"));
    }
    at += got;
    to += got;
    size -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

void SafetensorsFile::Prefetch(const std::byte* from, size_t size) const {
  posix_fadvise(descriptor_, from - static_cast<const std::byte*>(mapping_),
                static_cast<off_t>(size), POSIX_FADV_WILLNEED);
}

SafetensorsFile::~SafetensorsFile() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_size_);
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace apb::model
