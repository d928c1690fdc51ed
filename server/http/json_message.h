// Fields of a JSON object into the fields of the same names of a message.
#pragma once

#include <initializer_list>
#include <string_view>

#include "engine/base/json_reader.h"
#include "google/protobuf/message.h"

namespace apb::http_api {

// Reads every field of the message but `except`; an absent one stays absent. A list of strings may
// be one string. What does not fit the field's type is the reader's error. The message may have
// fields of type bool, int32, uint64, double and string, and lists of int32 and of string.
void ReadMessage(base::JsonReader& reader, google::protobuf::Message& message,
                 std::initializer_list<std::string_view> except = {});

}  // namespace apb::http_api
