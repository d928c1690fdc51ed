// A request as the scheduler gets it, the limits of the group, and how one becomes the other's
// SequenceSpec: checks, the choice that `auto` stands for, the share of KV on every rank. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/schedule/kv_account.h"
#include "engine/schedule/step_plan.h"

namespace apb::schedule {

struct Request {
  SequenceId id{};  // unique among the requests that have not ended
  std::vector<int32_t> tokens;
  int64_t query_begin = 0;  // document = [0, query_begin)
  int32_t query_insert_position = 0;
  std::vector<int32_t> embedded_query;
  std::string strategy = "auto";  // auto, full, apb, star
  std::string compressor;         // "" = default
  int64_t anchor_length = -1;     // -1 = default
  int64_t passing_length = -1;
  int32_t hosts = 0;   // 0 = default
  bool exact = false;  // `auto` may choose exact strategies only; an approximate one is refused
  bool report_progress = false;
  sampling::SamplingParams sampling;
};

// What the group is and allows; set once.
struct SchedulerOptions {
  int ranks = 1;
  int default_hosts = 1;  // a multiple of ranks
  int layers = 1;
  int64_t vocab_size = 0;
  bool has_retaining_heads = false;
  int64_t block_size = 32;      // tokens
  int64_t blocks_per_rank = 0;  // of every rank
  int64_t max_model_len = 0;    // tokens of prompt and completion

  int64_t max_batch_rows = 512;  // rows of one step: query chunks and one row a decoding sequence
  int max_running = 256;         // admitted sequences; at most max_batch_rows
  int max_active_prefills = 4;   // their hidden states are in memory at the same time
  int max_waiting = 1024;
  int64_t max_waiting_tokens = int64_t{16} << 20;
  // `auto` computes documents shorter than this exactly (docs/benchmarks tells why).
  int64_t auto_full_below = 8192;
  // A waiting request that was overtaken this often is overtaken no more.
  int max_overtakes = 16;

  double slice_seconds = 0.25;       // aim for a prefill slice when nobody decodes: cancel latency
  double busy_slice_seconds = 0.05;  // aim while others decode: what it adds to their token latency
  double progress_seconds = 0.2;     // least time between two progress events of a sequence

  // Work of one row in one layer (matrix products) and of one query-key pair in one layer, in
  // floating point operations: the cost model's guess before anything was measured.
  double row_flops = 1e7;
  double pair_flops = 1e4;
};

// Work of a document prefill in one layer, on the rank that has most.
struct PrefillWork {
  double rows = 0;
  double pairs = 0;
};

struct ResolvedRequest {
  SequenceSpec spec;
  KvShare share;
  PrefillWork work;
  int64_t prompt_tokens = 0;
  int64_t generated_limit = 0;  // max_tokens, or less where the context or the KV cache ends before
};

// kInvalidArgument: a field is wrong, or the prompt can never fit; the message names the field and
// the limit. Policy of `auto`: full when `exact`, when the document is shorter than
// auto_full_below, or when there is one host; else apb. Default compressor: retaining heads when
// the model has them, else query_aware. A prompt under `full` that fits one batch of rows is
// computed as query rows on all ranks (query_begin 0): exact as well, one step less, and its KV is
// spread over the ranks.
absl::StatusOr<ResolvedRequest> ResolveRequest(Request request, const SchedulerOptions& options);

}  // namespace apb::schedule
