// Files of a checkpoint's folder.
#include "server/text/file_contents.h"

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace apb::text {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  const auto size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  if (size > (uintmax_t{1} << 30))
    return absl::ResourceExhaustedError(absl::StrCat(path, ": larger than 1 GiB"));
  std::string contents(size, '\0');
  file.read(contents.data(), static_cast<std::streamsize>(size));
  if (file.gcount() != static_cast<std::streamsize>(size))
    return absl::DataLossError(
        absl::StrCat(path, ": read ", file.gcount(), " of ", size, " bytes"));
  return contents;
}

}  // namespace apb::text
