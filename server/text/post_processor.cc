// Only the template for a single text is read; the template for pairs has no use here.
#include "server/text/post_processor.h"

#include "absl/strings/str_cat.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"
#include "server/text/bpe_model.h"
#include "server/text/component.h"

namespace apb::text {
namespace {

absl::Status AppendSpecial(const nlohmann::json& json, const std::string& name,
                           const std::string& where, std::vector<int32_t>& ids) {
  const auto table = json.find("special_tokens");
  if (table == json.end() || !table->is_object() || !table->contains(name))
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": special_tokens has no \"", name, "\""));
  base::JsonReader reader((*table)[name], where + ".special_tokens.");
  const nlohmann::json* list = reader.Array("ids");
  APB_RETURN_IF_ERROR(reader.status());
  for (const nlohmann::json& id : *list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(kMaxTokenId))
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": an id of \"", name, "\" is out of range"));
    ids.push_back(static_cast<int32_t>(id.get<uint64_t>()));
  }
  return absl::OkStatus();
}

absl::Status ReadTemplate(const nlohmann::json& json, const std::string& where,
                          TokensAround& around) {
  base::JsonReader reader(json, where + ".");
  const nlohmann::json* single = reader.Array("single");
  APB_RETURN_IF_ERROR(reader.status());
  TokensAround here;
  bool seen_text = false;
  for (const nlohmann::json& item : *single) {
    if (item.is_object() && item.contains("Sequence")) {
      if (seen_text) return absl::UnimplementedError(absl::StrCat(where, ": the text twice"));
      seen_text = true;
    } else if (item.is_object() && item.contains("SpecialToken")) {
      base::JsonReader special(item["SpecialToken"], where + ".single.");
      const std::string name = special.String("id");
      APB_RETURN_IF_ERROR(special.status());
      APB_RETURN_IF_ERROR(AppendSpecial(json, name, where, seen_text ? here.suffix : here.prefix));
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ".single: neither Sequence nor SpecialToken"));
    }
  }
  if (!seen_text)
    return absl::InvalidArgumentError(absl::StrCat(where, ".single: without the text"));
  around.prefix.insert(around.prefix.begin(), here.prefix.begin(), here.prefix.end());
  around.suffix.insert(around.suffix.end(), here.suffix.begin(), here.suffix.end());
  return absl::OkStatus();
}

absl::Status Read(const nlohmann::json& json, const std::string& where, int depth,
                  TokensAround& around) {
  if (depth > kMaxComponentDepth)
    return absl::InvalidArgumentError(absl::StrCat(where, ": nested too deep"));
  base::JsonReader reader(json, where + ".");
  const std::string type = reader.String("type");
  APB_RETURN_IF_ERROR(reader.status());
  if (type == "ByteLevel") return absl::OkStatus();
  if (type == "TemplateProcessing") return ReadTemplate(json, where, around);
  if (type != "Sequence")
    return absl::UnimplementedError(
        absl::StrCat(where, ": post-processor type \"", type, "\" is not supported"));
  const nlohmann::json* list = reader.Array("processors");
  APB_RETURN_IF_ERROR(reader.status());
  for (const nlohmann::json& item : *list)
    APB_RETURN_IF_ERROR(Read(item, where + ".processors", depth + 1, around));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokensAround> ReadPostProcessor(const nlohmann::json& json) {
  TokensAround around;
  if (!json.is_null()) APB_RETURN_IF_ERROR(Read(json, "post_processor", 0, around));
  return around;
}

}  // namespace apb::text
