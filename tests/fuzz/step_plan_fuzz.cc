// Goal: no bytes crash the decoder of step plans. Method: an input is an encoded step plan.
// Property: an accepted plan is the same plan after encoding and decoding.
#include "engine/schedule/step_plan.h"
#include "tests/fuzz/fuzz_target.h"

namespace apb::fuzz {

using schedule::SequenceId;
using schedule::StepPlan;

std::vector<std::string> Seeds() {
  StepPlan plan{.step = 7};
  plan.releases = {SequenceId{1}, SequenceId{2}};
  schedule::SequenceSpec& spec = plan.admissions.emplace_back();
  spec.id = SequenceId{3};
  spec.tokens = {1, 2, 3, 4, 5};
  spec.query_begin = 3;
  spec.embedded_query = {4, 5};
  spec.strategy = "apb";
  spec.strategy_options.compressor = "query_aware";
  spec.strategy_options.hosts = 4;
  spec.sampling.stop_tokens = {2};
  plan.prefill.push_back({.ids = {SequenceId{3}}, .layer_begin = 0, .layer_end = 2});
  plan.spans.push_back({.id = SequenceId{4}, .position = 9, .tokens = {6}, .sample = true});
  StepPlan last;
  last.shutdown = true;
  return {EncodeStepPlan(plan), EncodeStepPlan(StepPlan{}), EncodeStepPlan(last)};
}

bool Accepts(std::string_view input) {
  const auto plan = schedule::DecodeStepPlan(input);
  if (!plan.ok()) {
    APB_PROPERTY(absl::IsDataLoss(plan.status()));
    return false;
  }
  const std::string bytes = EncodeStepPlan(*plan);
  APB_PROPERTY(bytes.size() == input.size());  // bytes may differ: any byte but 0 is a true flag
  const auto again = schedule::DecodeStepPlan(bytes);
  APB_PROPERTY(again.ok() && EncodeStepPlan(*again) == bytes);
  return true;
}

}  // namespace apb::fuzz
