// Reflection on the message decides how each JSON field is read.
#include "server/http/json_message.h"

#include <algorithm>
#include <limits>

#include "engine/base/check.h"

namespace apb::http_api {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

void ReadList(base::JsonReader& reader, const FieldDescriptor* field, Message& message) {
  const Reflection& to = *message.GetReflection();
  const char* name = field->name().c_str();
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    for (std::string& text : reader.Strings(name)) to.AddString(&message, field, std::move(text));
    return;
  }
  APB_CHECK(field->cpp_type() == FieldDescriptor::CPPTYPE_INT32);
  for (const int32_t number : reader.Integers(name)) to.AddInt32(&message, field, number);
}

void ReadScalar(base::JsonReader& reader, const FieldDescriptor* field, Message& message) {
  const Reflection& to = *message.GetReflection();
  const char* name = field->name().c_str();
  constexpr double kAny = std::numeric_limits<double>::infinity();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return to.SetBool(&message, field, reader.Boolean(name));
    case FieldDescriptor::CPPTYPE_INT32:
      return to.SetInt32(
          &message, field,
          static_cast<int32_t>(reader.Integer(name, std::numeric_limits<int32_t>::min(),
                                              std::numeric_limits<int32_t>::max())));
    case FieldDescriptor::CPPTYPE_UINT64:
      return to.SetUInt64(&message, field, reader.Bits(name));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return to.SetDouble(&message, field, reader.Number(name, -kAny, kAny));
    case FieldDescriptor::CPPTYPE_STRING:
      return to.SetString(&message, field, reader.String(name));
    default:
      APB_CHECK(false);
  }
}

}  // namespace

void ReadMessage(base::JsonReader& reader, Message& message,
                 std::initializer_list<std::string_view> except) {
  const google::protobuf::Descriptor& descriptor = *message.GetDescriptor();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor* field = descriptor.field(i);
    const bool skipped = std::find(except.begin(), except.end(), field->name()) != except.end();
    if (skipped || !reader.Has(field->name().c_str())) continue;
    field->is_repeated() ? ReadList(reader, field, message) : ReadScalar(reader, field, message);
  }
}

}  // namespace apb::http_api
