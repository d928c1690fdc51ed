#include "engine/worker/submit_codec.h"

#include "engine/base/check.h"

namespace apb::worker {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// One overload for each type of a field in the engine's structs.
void Get(const Reflection& from, const Message& message, const FieldDescriptor* field,
         int32_t& value) {
  value = from.GetInt32(message, field);
}
// Lengths have 32 bits in the message and 64 in the engine.
void Get(const Reflection& from, const Message& message, const FieldDescriptor* field,
         int64_t& value) {
  value = from.GetInt32(message, field);
}
void Get(const Reflection& from, const Message& message, const FieldDescriptor* field,
         uint64_t& value) {
  value = from.GetUInt64(message, field);
}
void Get(const Reflection& from, const Message& message, const FieldDescriptor* field,
         float& value) {
  value = static_cast<float>(from.GetDouble(message, field));
}
void Get(const Reflection& from, const Message& message, const FieldDescriptor* field,
         std::vector<int32_t>& values) {
  for (int i = 0; i < from.FieldSize(message, field); ++i)
    values.push_back(from.GetRepeatedInt32(message, field, i));
}
void Get(const Reflection& from, const Message& message, const FieldDescriptor* field,
         std::string& value) {
  value = from.GetString(message, field);
}

// Sets `value` from the field, if the message has it.
template <typename T>
void GetIfPresent(const Message& message, const FieldDescriptor* field, T& value) {
  const Reflection& reflection = *message.GetReflection();
  if (field->is_repeated() || reflection.HasField(message, field))
    Get(reflection, message, field, value);
}

}  // namespace

// Fields go by name, so that a new one is named in the message and in ForEachField only.
// submit_codec_test looks for names that one of them lacks.
sampling::SamplingParams FromProto(const common::v1::SamplingParams& message) {
  sampling::SamplingParams params;
  sampling::ForEachField(params, [&](const char* name, auto& value) {
    const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
    APB_CHECK(field != nullptr);
    GetIfPresent(message, field, value);
  });
  return params;
}

context_parallel::StrategyOptions FromProto(const common::v1::ApbOptions& message) {
  context_parallel::StrategyOptions options{.hosts = 0};
  context_parallel::ForEachField(options, [&](const char* name, auto& value) {
    const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
    if (field != nullptr) GetIfPresent(message, field, value);
  });
  return options;
}

schedule::Request FromProto(const cluster::v1::Submit& submit) {
  schedule::Request request;
  schedule::SequenceSpec& spec = request.spec;
  spec.id = schedule::SequenceId{submit.sequence()};
  spec.tokens.assign(submit.tokens().begin(), submit.tokens().end());
  spec.query_begin = submit.query_begin();
  spec.query_insert_position = submit.query_insert_position();
  spec.embedded_query.assign(submit.embedded_query().begin(), submit.embedded_query().end());
  spec.sampling = FromProto(submit.sampling());
  const common::v1::ApbOptions& apb = submit.apb();
  spec.strategy = apb.strategy();
  spec.strategy_options = FromProto(apb);
  request.exact = apb.exact();
  if (apb.has_balanced()) request.balanced = apb.balanced();
  request.report_progress = submit.report_progress();
  request.keep = submit.keep();
  if (submit.context() != 0) request.context = schedule::SequenceId{submit.context()};
  return request;
}

}  // namespace apb::worker
