// Goal: every field that a server submits reaches the scheduler, and the engine's lists of sampling
// fields and strategy options have the names of the messages. Method: messages with every field set
// and with none, read back field by field.
#include "engine/worker/submit_codec.h"

#include <gtest/gtest.h>

#include <set>

namespace apb::worker {
namespace {

template <typename Fields>
std::set<std::string> NamesOf(const Fields& fields) {
  std::set<std::string> names;
  ForEachField(fields, [&](const char* name, const auto&) { names.insert(name); });
  return names;
}

std::set<std::string> NamesOf(const google::protobuf::Descriptor& message) {
  std::set<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.insert(message.field(i)->name());
  return names;
}

TEST(SubmitCodec, SamplingFieldsHaveTheNamesOfTheMessage) {
  std::set<std::string> names = NamesOf(sampling::SamplingParams());
  // The server alone uses these: it matches strings and resolves the flags.
  names.insert({"stop", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"});
  EXPECT_EQ(names, NamesOf(*common::v1::SamplingParams::descriptor()));
}

TEST(SubmitCodec, StrategyOptionsHaveTheNamesOfTheMessage) {
  std::set<std::string> names = NamesOf(context_parallel::StrategyOptions());
  names.erase("row_cost_pairs");                    // what the leader makes of `balanced`
  names.insert({"strategy", "exact", "balanced"});  // fields of SequenceSpec and Request
  names.insert("query");                            // ends with the server
  EXPECT_EQ(names, NamesOf(*common::v1::ApbOptions::descriptor()));
}

TEST(SubmitCodec, SamplingOfEveryType) {
  common::v1::SamplingParams message;
  message.set_max_tokens(7);
  message.set_temperature(0.25);
  message.set_top_p(0.5);
  message.set_top_k(40);
  message.set_min_p(0.125);
  message.set_seed(uint64_t{1} << 63);
  message.set_presence_penalty(-1);
  message.set_frequency_penalty(2);
  message.set_repetition_penalty(1.5);
  message.add_stop_token_ids(11);
  message.add_stop_token_ids(12);
  message.set_logprobs(3);
  message.set_min_tokens(2);
  const sampling::SamplingParams params = FromProto(message);
  EXPECT_EQ(params.max_tokens, 7);
  EXPECT_EQ(params.temperature, 0.25f);
  EXPECT_EQ(params.top_p, 0.5f);
  EXPECT_EQ(params.top_k, 40);
  EXPECT_EQ(params.min_p, 0.125f);
  EXPECT_EQ(params.seed, uint64_t{1} << 63);
  EXPECT_EQ(params.presence_penalty, -1.0f);
  EXPECT_EQ(params.frequency_penalty, 2.0f);
  EXPECT_EQ(params.repetition_penalty, 1.5f);
  EXPECT_EQ(params.stop_tokens, (std::vector<int32_t>{11, 12}));
  EXPECT_EQ(params.logprobs, 3);
  EXPECT_EQ(params.min_tokens, 2);
}

TEST(SubmitCodec, AbsentFieldsAreTheStructsDefaults) {
  const schedule::Request request = FromProto(cluster::v1::Submit());
  EXPECT_EQ(request.spec.sampling.logprobs, -1);
  EXPECT_EQ(request.spec.sampling.repetition_penalty, 1.0f);
  EXPECT_TRUE(request.spec.strategy.empty());
  EXPECT_TRUE(request.spec.strategy_options.compressor.empty());
  EXPECT_EQ(request.spec.strategy_options.hosts, 0);
  EXPECT_EQ(request.spec.strategy_options.anchor_length, -1);
  EXPECT_EQ(request.spec.strategy_options.passing_length, -1);
  EXPECT_FALSE(request.exact || request.balanced.has_value() || request.context.has_value());
}

TEST(SubmitCodec, ContextParallelOptions) {
  cluster::v1::Submit submit;
  submit.set_sequence(5);
  submit.add_tokens(8);
  submit.add_tokens(9);
  submit.set_query_begin(1);
  submit.set_query_insert_position(1);
  submit.add_embedded_query(9);
  common::v1::ApbOptions& apb = *submit.mutable_apb();
  apb.set_strategy("apb");
  apb.set_compressor("random");
  apb.set_hosts(8);
  apb.set_anchor_length(0);
  apb.set_passing_length(16);
  apb.set_exact(true);
  apb.set_balanced(false);
  submit.set_report_progress(true);
  submit.set_keep(true);
  submit.set_context(4);
  const schedule::Request request = FromProto(submit);
  EXPECT_EQ(request.spec.id, schedule::SequenceId{5});
  EXPECT_EQ(request.spec.tokens, (std::vector<int32_t>{8, 9}));
  EXPECT_EQ(request.spec.query_begin, 1);
  EXPECT_EQ(request.spec.query_insert_position, 1);
  EXPECT_EQ(request.spec.embedded_query, std::vector<int32_t>{9});
  EXPECT_EQ(request.spec.strategy, "apb");
  EXPECT_EQ(request.spec.strategy_options.compressor, "random");
  EXPECT_EQ(request.spec.strategy_options.hosts, 8);
  EXPECT_EQ(request.spec.strategy_options.anchor_length, 0);
  EXPECT_EQ(request.spec.strategy_options.passing_length, 16);
  EXPECT_TRUE(request.exact && request.report_progress && request.keep);
  EXPECT_EQ(request.balanced, false);
  EXPECT_EQ(request.context, schedule::SequenceId{4});
}

}  // namespace
}  // namespace apb::worker
