#include "engine/model/checkpoint.h"

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr size_t kMaxIndexBytes = 16 << 20;

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// The file of each tensor, from the index at `path`. A file name must stay inside the checkpoint's
// directory.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  APB_ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path, kMaxIndexBytes));
  APB_ASSIGN_OR_RETURN(const nlohmann::json index, base::ParseJsonObject(text, path));
  if (!index.contains("weight_map") || !index["weight_map"].is_object())
    return absl::InvalidArgumentError(absl::StrCat(path, ": has no weight_map"));
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string())
      return absl::InvalidArgumentError(absl::StrCat(path, ": '", tensor, "' names no file"));
    const std::string name = file.get<std::string>();
    if (name.empty() || absl::StrContains(name, "/") || absl::StrContains(name, "..") ||
        name.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": file name '", name, "' leaves the checkpoint's directory"));
    }
    shards[tensor] = name;
  }
  return shards;
}

}  // namespace

absl::Status Checkpoint::Add(const std::string& path) {
  APB_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(path));
  for (const auto& [name, entry] : file->tensors()) {
    if (!tensors_.emplace(name, Entry{&entry, file.get()}).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor '", name, "' is also in another file"));
    }
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status Checkpoint::Open(const std::string& directory) {
  absl::Status single = Add(directory + "/model.safetensors");
  if (!absl::IsNotFound(single)) return single;
  const std::string index_path = directory + "/model.safetensors.index.json";
  auto shards = ReadIndex(index_path);
  if (absl::IsNotFound(shards.status())) {
    return absl::NotFoundError(
        absl::StrCat(directory,
                     ": has neither model.safetensors nor model.safetensors.index.json (weights in "
                     "another format have to be converted to safetensors)"));
  }
  APB_RETURN_IF_ERROR(shards.status());
  std::set<std::string> names;
  for (const auto& [tensor, file] : *shards) names.insert(file);
  for (const std::string& name : names)
    APB_RETURN_IF_ERROR(Add(absl::StrCat(directory, "/", name)));
  for (const auto& [tensor, file] : *shards) {
    if (!tensors_.contains(tensor)) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": tensor '", tensor, "' is not in ", file, " (damaged copy?)"));
    }
  }
  return absl::OkStatus();
}

// Retaining heads are trained for one model: a file with more or fewer layers is another model's.
absl::StatusOr<bool> Checkpoint::AddRetainingHeads(const std::string& path, int32_t layers) {
  const absl::Status added = Add(path);
  if (absl::IsNotFound(added)) return false;
  APB_RETURN_IF_ERROR(added);
  const SafetensorsFile& file = *files_.back();
  if (file.tensors().size() != 2 * static_cast<size_t>(layers)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": has ", file.tensors().size(),
                                                   " tensors, fc1 and fc2 of the model's ", layers,
                                                   " layers are ", 2 * layers));
  }
  auto activation = file.metadata().find("activation");
  if (activation != file.metadata().end() && activation->second != "silu") {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": activation '", activation->second, "' is not supported (silu is)"));
  }
  return true;
}

Checkpoint::Entry Checkpoint::FindEntry(const std::string& name) const {
  const auto place = tensors_.find(name);
  return place == tensors_.end() ? Entry{} : place->second;
}

absl::StatusOr<Checkpoint::Found> Checkpoint::Find(const std::string& name,
                                                   const std::vector<int64_t>& shape) const {
  const auto place = tensors_.find(name);
  if (place == tensors_.end())
    return absl::InvalidArgumentError(absl::StrCat("checkpoint: tensor '", name, "' is missing"));
  const SafetensorsEntry& entry = *place->second.entry;
  static const std::map<std::string, DType> types = {
      {"F32", DType::kF32}, {"BF16", DType::kBF16}, {"F16", DType::kF16}};
  const auto type = types.find(entry.dtype);
  if (type == types.end()) {
    return absl::InvalidArgumentError(absl::StrCat("checkpoint: tensor '", name, "' is ",
                                                   entry.dtype,
                                                   "; weights are F32, BF16 or F16 unless "
                                                   "config.json has a quantization_config that "
                                                   "says how to read them"));
  }
  bool fits = entry.shape.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i)
    fits = shape[i] == -1 || shape[i] == entry.shape[i];
  if (!fits) {
    return absl::InvalidArgumentError(absl::StrCat("checkpoint: tensor '", name, "' has shape ",
                                                   ShapeText(entry.shape),
                                                   ", config.json asks for ", ShapeText(shape)));
  }
  auto* data = const_cast<std::byte*>(entry.data);
  return Found{entry.shape.size() == 1
                   ? TensorView::Contiguous(data, type->second, {entry.shape[0]})
                   : TensorView::Contiguous(data, type->second, {entry.shape[0], entry.shape[1]}),
               place->second.file};
}

}  // namespace apb::model
