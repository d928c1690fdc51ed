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
  // Opens `<directory>/model.safetensors`, or else the files that model.safetensors.index.json
  // names, all of them in the directory. The error names the file.
  absl::Status Open(const std::string& directory);
  // Adds a file of retaining heads: two tensors for each of the model's layers. False if there is
  // no such file.
  absl::StatusOr<bool> AddRetainingHeads(const std::string& path, int32_t layers);

  struct Found {
    kernels::TensorView view;  // into the mapped file; may not be aligned to its type
    const SafetensorsFile* file = nullptr;
  };
  // A tensor of this shape (-1 matches any extent) and of type F32, BF16 or F16. Its views live as
  // long as the checkpoint. The error names the tensor.
  absl::StatusOr<Found> Find(const std::string& name, const std::vector<int64_t>& shape) const;

  struct Entry {
    const SafetensorsEntry* entry = nullptr;
    const SafetensorsFile* file = nullptr;
  };
  // A tensor of any type and shape. Nulls if there is none.
  Entry FindEntry(const std::string& name) const;

 private:
  absl::Status Add(const std::string& path);
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> tensors_;
};

}  // namespace apb::model
