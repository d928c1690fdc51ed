// A memory-mapped safetensors file. The whole header is checked before any tensor is handed out:
// sizes, types, bounds, overlaps, holes. A hostile file gives kInvalidArgument (the message names
// the file and the tensor), never a crash. A tensor's data may not be aligned to its type. The file
// must not be truncated while the mapping is read: reading a page beyond its end raises SIGBUS.
// Read does not use the mapping, and returns an error in that case.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace apb::model {

struct SafetensorsEntry {
  std::string dtype;           // "BF16", "F32", ...
  std::vector<int64_t> shape;  // at most 8 dimensions
  const std::byte* data = nullptr;
  size_t size_bytes = 0;
};

class SafetensorsFile {
 public:
  // kNotFound if the file cannot be opened, kInvalidArgument if it is not a valid safetensors file.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  // For tests: parses bytes that the caller keeps alive.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Parse(std::string_view bytes,
                                                                const std::string& name);
  ~SafetensorsFile();

  // Copies the `size` bytes that the mapping has at `from` to `to`. kDataLoss (the message names
  // the file) if they cannot be read. Thread-safe. Only for a file from Open.
  absl::Status Read(const std::byte* from, size_t size, std::byte* to) const;
  // Advises the system to read these bytes ahead.
  void Prefetch(const std::byte* from, size_t size) const;

  const std::map<std::string, SafetensorsEntry>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  SafetensorsFile() = default;
  absl::Status ParseHeader(std::string_view bytes, const std::string& name);
  std::map<std::string, SafetensorsEntry> tensors_;
  std::map<std::string, std::string> metadata_;
  std::string path_;
  int descriptor_ = -1;
  void* mapping_ = nullptr;
  size_t mapping_size_ = 0;
};

}  // namespace apb::model
