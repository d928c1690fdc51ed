// The server's metrics. Callers report events; this class knows the names, labels and buckets.
// Thread-safe; no call waits for anything slow.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace apb::observability {

// A request that has ended. Times are in seconds.
struct FinishedRequest {
  std::string_view outcome;        // ok, error, cancelled or rejected
  std::string_view finish_reason;  // stop, length, context (a context was created), or empty
  // The one that was used; empty if it is unknown or the request never ran.
  std::string_view strategy;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // prompt tokens whose KV was already in the cache
  int64_t generated_tokens = 0;
  double duration_seconds = 0;
  // Measured by the worker; ignored unless the outcome is ok.
  double queue_seconds = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;
};

// One kind of collective on one rank; counters since the rank's start.
struct CollectiveSample {
  std::string operation;  // all_gather, ...
  double bytes = 0;       // sent by this rank
  double calls = 0;
  double seconds = 0;  // waiting for other ranks included
};

struct RankSample {
  int rank = 0;
  std::string host;              // machine name
  int64_t kv_blocks_used = 0;    // held by running requests
  int64_t kv_blocks_cached = 0;  // held by ended requests
  int64_t kv_blocks_pinned = 0;  // held by contexts
  int64_t kv_blocks_total = 0;
  // Counters since the rank's start, by phase and by operation.
  std::vector<std::pair<std::string, double>> phase_seconds;
  std::vector<CollectiveSample> collectives;
};

struct GroupSample {
  std::string group;
  int64_t prompt_tokens_computed = 0;  // counter since the group's start
  std::vector<RankSample> ranks;
};

// The speeds of a group, measured or assumed by its workers.
struct GroupCalibration {
  double product_flops = 0, attention_flops = 0;  // FLOP/s of one rank
  double link_bytes_per_second = 0, link_latency_seconds = 0;
};

class Metrics {
 public:
  Metrics(std::string_view model, std::string_view version);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void RequestFinished(const FinishedRequest& request);
  // `reason`: why the request was refused (RejectionReason in request/status_map.h): queue_full,
  // too_long, invalid or unavailable.
  void RequestRejected(std::string_view reason);
  void FirstToken(double seconds_since_arrival);
  void InterToken(double seconds);
  // Time of the template and the tokenization of one prompt.
  void TextWork(double seconds);
  // A client was cut off because it read too slowly.
  void SlowReader();
  void SetRequests(int64_t running, int64_t waiting, int64_t waiting_tokens);

  void SetContexts(int64_t count, int64_t tokens);

  void GroupConnected(std::string_view group, int ranks, std::string_view dtype,
                      std::string_view weight_type, int64_t kv_block_size, int64_t kv_blocks,
                      double load_seconds);
  void GroupCalibrated(std::string_view group, const GroupCalibration& calibration);
  void GroupStats(const GroupSample& sample);
  void GroupLost(std::string_view group);
  void GroupRestarted();

  // `state`: starting, ready, not_ready or draining.
  void SetServerState(std::string_view state);
  void HttpRequest(std::string_view route, std::string_view method, int code);
  void GrpcRequest(std::string_view method, std::string_view code);
  void SetHttpConnections(int64_t count);

  // All metrics in the Prometheus text format.
  std::string Serialize() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace apb::observability
