// A memory-mapped safetensors file. The whole header is checked before any tensor is handed out:
// sizes, types, bounds, overlaps, holes. A hostile file gives kInvalidArgument (with the file and
// the tensor's name), never a crash. The data of a tensor need not be aligned to its type. The file
// must not be truncated while the mapping is read: a page that has gone raises SIGBUS, as for a
// program. Read takes the way past the mapping, where it is an error.
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
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  // For tests: parses bytes that the caller keeps alive.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Parse(std::string_view bytes,
                                                                const std::string& name);
  ~SafetensorsFile();

  // Copies the bytes that the mapping has at `from`. kDataLoss (with the file's name) when they
  // cannot be read. Thread-safe. Of an opened file.
  absl::Status Read(const std::byte* from, size_t size, std::byte* to) const;
  // Asks the system to read bytes ahead, if it likes to.
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
