// The safetensors files of a checkpoint's directory as one set of named tensors.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/safetensors.h"
#include "kernels/tensor_view.h"

namespace apb::model {

class Checkpoint {
 public:
  // Opens `<directory>/model.safetensors` or else the shards of model.safetensors.index.json; none
  // of them leaves the directory. The error names the file.
  absl::Status Open(const std::string& directory);
  // Adds a file of retaining heads, of which each of the model's layers has two tensors; false if
  // there is no such file.
  absl::StatusOr<bool> AddRetainingHeads(const std::string& path, int32_t layers);

  struct Found {
    kernels::TensorView view;  // into the mapped file; not always aligned to its type
    const SafetensorsFile* file = nullptr;
  };
  // A tensor of this shape (an extent of -1 takes any) and of a float type: F32, BF16 or F16. The
  // error names it.
  absl::StatusOr<Found> Find(const std::string& name, const std::vector<int64_t>& shape) const;

  struct Entry {
    const SafetensorsEntry* entry = nullptr;
    const SafetensorsFile* file = nullptr;
  };
  // A tensor of any type and shape; nulls if there is none.
  Entry FindEntry(const std::string& name) const;

 private:
  absl::Status Add(const std::string& path);
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> tensors_;
};

}  // namespace apb::model
