// Copies the fields of a JSON object into the message fields of the same names.
#pragma once

#include <initializer_list>
#include <string_view>

#include "engine/base/json_reader.h"
#include "google/protobuf/message.h"

namespace apb::http_api {

// Reads every field of the message but `except`; an absent one stays absent. A single string stands
// for a list of one. A value that does not fit the field's type becomes the reader's error.
// Supports fields of type bool, int32, uint64, double and string, and lists of int32 and of string.
void ReadMessage(base::JsonReader& reader, google::protobuf::Message& message,
                 std::initializer_list<std::string_view> except = {});

}  // namespace apb::http_api
