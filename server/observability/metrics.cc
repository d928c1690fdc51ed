// Metrics in one prometheus-cpp registry; our own HTTP server sends their text.
#include "server/observability/metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace apb::observability {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using Labels = std::map<std::string, std::string>;
using Buckets = Histogram::BucketBoundaries;

// Seconds. Long contexts range from a cached chat turn to a prefill of hours.
const Buckets& RequestBuckets() {
  static const Buckets buckets = {.005, .01, .025, .05, .1,  .25, .5,  1,    2.5,  5,    10,  20,
                                  40,   60,  90,   120, 180, 300, 600, 1200, 1800, 3600, 7200};
  return buckets;
}
const Buckets& TokenBuckets() {
  static const Buckets buckets = {.002, .005, .01, .015, .02, .025, .03, .04, .05, .075, .1,
                                  .15,  .2,   .3,  .5,   .75, 1,    2.5, 5,   10,  30,   60};
  return buckets;
}
// A 1-2-5 series up to two million.
const Buckets& CountBuckets() {
  static const Buckets buckets = {1,     2,      5,      10,     20,      50,     100,
                                  200,   500,    1000,   2000,   5000,    10000,  20000,
                                  50000, 100000, 200000, 500000, 1000000, 2000000};
  return buckets;
}

constexpr const char* kServerStates[] = {"starting", "ready", "not_ready", "draining"};

// Resident bytes and CPU time of this process, which prometheus-cpp does not collect.
std::string ProcessMetrics() {
  long pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
                     1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  return absl::StrCat(
      "# HELP process_resident_memory_bytes Resident memory of apb-server\n"
      "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes ",
      resident * sysconf(_SC_PAGESIZE),
      "\n# HELP process_cpu_seconds_total CPU time of apb-server\n"
      "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total ",
      cpu, "\n");
}

}  // namespace

struct Metrics::State {
  State(std::string_view model_name, std::string_view version)
      : model{{"model", std::string(model_name)}} {
    build_info.Add({{"version", std::string(version)}}).Set(1);
    for (const char* state : kServerStates) server_state.Add({{"state", state}}).Set(0);
    group_restarts.Add({});
    for (const char* outcome : {"ok", "error", "cancelled", "rejected"}) {
      requests.Add({{"outcome", outcome}, {"finish_reason", ""}, {"strategy", ""}});
    }
  }

  Family<Counter>& NewCounter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Labels(model).Register(*registry);
  }
  Family<Gauge>& NewGauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Labels(model).Register(*registry);
  }
  Histogram& NewHistogram(const char* name, const char* help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Labels(model).Register(*registry).Add(
        {}, buckets);
  }
  // Adds the growth of a worker's counter. A value below the last one means that the worker has
  // restarted and its counter began at zero.
  void Advance(Counter& counter, const std::string& key, double value)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    double& last = last_values[key];
    counter.Increment(value >= last ? value - last : value);
    last = value;
  }

  const Labels model;
  std::unique_ptr<prometheus::Registry> registry = std::make_unique<prometheus::Registry>();

  Family<Gauge>& build_info = NewGauge("apb_build_info", "Always 1; the version is a label");
  Family<Gauge>& model_info = NewGauge("apb_model_info", "Always 1; what each worker group serves");
  Family<Gauge>& cache_config_info =
      NewGauge("apb_cache_config_info", "Always 1; block size in tokens and blocks of a group");
  Family<Gauge>& server_state = NewGauge("apb_server_state", "1 for the state the server is in");
  Gauge& running = NewGauge("apb_num_requests_running", "Requests being computed").Add({});
  Gauge& waiting = NewGauge("apb_num_requests_waiting", "Requests not started yet").Add({});
  Gauge& waiting_tokens = NewGauge("apb_queued_tokens", "Prompt tokens not started yet").Add({});
  Gauge& contexts = NewGauge("apb_contexts", "Contexts, lost ones included").Add({});
  Gauge& context_tokens = NewGauge("apb_context_tokens", "Tokens of these contexts").Add({});
  Family<Gauge>& kv_ratio = NewGauge("apb_kv_cache_usage_ratio",
                                     "Share of a rank's KV cache that requests and contexts hold");
  Family<Gauge>& kv_blocks = NewGauge("apb_kv_cache_blocks", "KV cache blocks of a rank by state");
  Family<Gauge>& rank_up = NewGauge("apb_rank_up", "1 while the rank's group is connected");
  Family<Gauge>& load_seconds = NewGauge("apb_startup_seconds", "Time a group took to load");
  Family<Gauge>& product_flops =
      NewGauge("apb_calibration_product_flops", "FLOP/s of a rank's matrix products at start-up");
  Family<Gauge>& attention_flops = NewGauge("apb_calibration_attention_flops",
                                            "FLOP/s of a rank's prefill attention at start-up");
  Family<Gauge>& link_speed = NewGauge("apb_calibration_link_bytes_per_second",
                                       "Bytes per second between two ranks at start-up");
  Family<Gauge>& link_latency =
      NewGauge("apb_calibration_link_latency_seconds", "Latency between two ranks at start-up");
  Gauge& http_connections = NewGauge("apb_http_connections", "Open HTTP connections").Add({});

  Family<Counter>& requests = NewCounter("apb_requests_total", "Requests by outcome");
  Family<Counter>& rejected =
      NewCounter("apb_requests_rejected_total", "Requests turned away by reason");
  Counter& prompt_tokens =
      NewCounter("apb_prompt_tokens_total", "Tokens of accepted prompts").Add({});
  Counter& cached_tokens =
      NewCounter("apb_cached_prompt_tokens_total", "Prompt tokens whose KV was there already")
          .Add({});
  Counter& generated_tokens = NewCounter("apb_generated_tokens_total", "Tokens sampled").Add({});
  Family<Counter>& computed_tokens = NewCounter(
      "apb_prompt_tokens_computed_total", "Prompt tokens computed, counted while prefill runs");
  Counter& wasted_tokens = NewCounter("apb_wasted_prompt_tokens_total",
                                      "Prompt tokens of requests that did not end well")
                               .Add({});
  Family<Counter>& phase_seconds =
      NewCounter("apb_prefill_phase_seconds_total", "Time of a rank by phase of the layer loop");
  Family<Counter>& collective_bytes =
      NewCounter("apb_collective_bytes_total", "Bytes a rank sent by collective");
  Family<Counter>& collective_calls =
      NewCounter("apb_collective_calls_total", "Collectives a rank took part in");
  Family<Counter>& collective_seconds = NewCounter(
      "apb_collective_seconds_total", "Time of a rank in collectives, waiting for others included");
  Family<Counter>& group_restarts =
      NewCounter("apb_group_restarts_total", "Starts of the local worker group after the first");
  Counter& slow_readers =
      NewCounter("apb_slow_reader_aborts_total", "Streams cut because the client did not read")
          .Add({});
  Family<Counter>& http_requests =
      NewCounter("apb_http_requests_total", "HTTP requests by route, method and status");
  Family<Counter>& grpc_requests =
      NewCounter("apb_grpc_requests_total", "gRPC calls by method and status");

  Histogram& first_token = NewHistogram("apb_time_to_first_token_seconds",
                                        "From arrival to the first token", RequestBuckets());
  Histogram& inter_token = NewHistogram("apb_inter_token_latency_seconds",
                                        "Between tokens of a request", TokenBuckets());
  Histogram& duration =
      NewHistogram("apb_request_duration_seconds", "From arrival to the end, accepted requests",
                   RequestBuckets());
  Histogram& queue_time =
      NewHistogram("apb_queue_time_seconds", "Waiting at the worker", RequestBuckets());
  Histogram& prefill_time =
      NewHistogram("apb_prefill_time_seconds", "Prefill and query pass", RequestBuckets());
  Histogram& decode_time =
      NewHistogram("apb_decode_time_seconds", "First to last token", RequestBuckets());
  Histogram& tokenize_time =
      NewHistogram("apb_tokenize_seconds", "Chat template and tokenization", RequestBuckets());
  Histogram& prompt_lengths =
      NewHistogram("apb_request_prompt_tokens", "Prompt lengths", CountBuckets());
  Histogram& generated_lengths =
      NewHistogram("apb_request_generated_tokens", "Completion lengths", CountBuckets());

  absl::Mutex mutex;
  absl::flat_hash_map<std::string, double> last_values ABSL_GUARDED_BY(mutex);
  // The labels of each group's ranks, which are marked as down when the group is lost.
  absl::flat_hash_map<std::string, std::vector<Labels>> ranks_of_group ABSL_GUARDED_BY(mutex);
};

Metrics::Metrics(std::string_view model, std::string_view version)
    : state_(std::make_unique<State>(model, version)) {
  SetServerState("starting");
}

Metrics::~Metrics() = default;

void Metrics::RequestFinished(const FinishedRequest& request) {
  State& s = *state_;
  s.requests
      .Add({{"outcome", std::string(request.outcome)},
            {"finish_reason", std::string(request.finish_reason)},
            {"strategy", std::string(request.strategy)}})
      .Increment();
  if (request.outcome == "rejected") return;
  s.prompt_tokens.Increment(static_cast<double>(request.prompt_tokens));
  s.cached_tokens.Increment(static_cast<double>(request.cached_tokens));
  s.generated_tokens.Increment(static_cast<double>(request.generated_tokens));
  s.duration.Observe(request.duration_seconds);
  if (request.outcome != "ok") {
    s.wasted_tokens.Increment(static_cast<double>(request.prompt_tokens));
    return;
  }
  s.prompt_lengths.Observe(static_cast<double>(request.prompt_tokens));
  s.generated_lengths.Observe(static_cast<double>(request.generated_tokens));
  s.queue_time.Observe(request.queue_seconds);
  s.prefill_time.Observe(request.prefill_seconds);
  s.decode_time.Observe(request.decode_seconds);
}

void Metrics::RequestRejected(std::string_view reason) {
  state_->rejected.Add({{"reason", std::string(reason)}}).Increment();
}
void Metrics::FirstToken(double seconds) { state_->first_token.Observe(seconds); }
void Metrics::InterToken(double seconds) { state_->inter_token.Observe(seconds); }
void Metrics::TextWork(double seconds) { state_->tokenize_time.Observe(seconds); }
void Metrics::SlowReader() { state_->slow_readers.Increment(); }

void Metrics::SetRequests(int64_t running, int64_t waiting, int64_t waiting_tokens) {
  state_->running.Set(static_cast<double>(running));
  state_->waiting.Set(static_cast<double>(waiting));
  state_->waiting_tokens.Set(static_cast<double>(waiting_tokens));
}

void Metrics::SetContexts(int64_t count, int64_t tokens) {
  state_->contexts.Set(static_cast<double>(count));
  state_->context_tokens.Set(static_cast<double>(tokens));
}

void Metrics::GroupConnected(std::string_view group, int ranks, std::string_view dtype,
                             std::string_view weight_type, int64_t kv_block_size, int64_t kv_blocks,
                             double load_seconds) {
  State& s = *state_;
  const std::string id(group);
  s.model_info
      .Add({{"group", id},
            {"ranks", absl::StrCat(ranks)},
            {"dtype", std::string(dtype)},
            {"weight_type", std::string(weight_type)}})
      .Set(1);
  s.cache_config_info
      .Add({{"group", id},
            {"block_size", absl::StrCat(kv_block_size)},
            {"num_blocks", absl::StrCat(kv_blocks)}})
      .Set(1);
  s.load_seconds.Add({{"group", id}}).Set(load_seconds);
  absl::MutexLock lock(&s.mutex);
  std::vector<Labels>& known = s.ranks_of_group[id];
  known.clear();
  for (int rank = 0; rank < ranks; ++rank) {
    known.push_back({{"group", id}, {"rank", absl::StrCat(rank)}});
    s.rank_up.Add(known.back()).Set(1);
  }
}

void Metrics::GroupCalibrated(std::string_view group, const GroupCalibration& calibration) {
  State& s = *state_;
  const Labels labels = {{"group", std::string(group)}};
  s.product_flops.Add(labels).Set(calibration.product_flops);
  s.attention_flops.Add(labels).Set(calibration.attention_flops);
  s.link_speed.Add(labels).Set(calibration.link_bytes_per_second);
  s.link_latency.Add(labels).Set(calibration.link_latency_seconds);
}

void Metrics::GroupStats(const GroupSample& sample) {
  State& s = *state_;
  absl::MutexLock lock(&s.mutex);
  s.Advance(s.computed_tokens.Add({{"group", sample.group}}),
            absl::StrCat(sample.group, "/computed"),
            static_cast<double>(sample.prompt_tokens_computed));
  for (const RankSample& rank : sample.ranks) {
    const Labels labels = {{"group", sample.group}, {"rank", absl::StrCat(rank.rank)}};
    const std::string key = absl::StrCat(sample.group, "/", rank.rank, "/");
    const double total = static_cast<double>(rank.kv_blocks_total);
    const double held = static_cast<double>(rank.kv_blocks_used + rank.kv_blocks_pinned);
    s.kv_ratio.Add(labels).Set(total > 0 ? held / total : 0);
    Labels state = labels;
    state["state"] = "used";
    s.kv_blocks.Add(state).Set(static_cast<double>(rank.kv_blocks_used));
    state["state"] = "cached";
    s.kv_blocks.Add(state).Set(static_cast<double>(rank.kv_blocks_cached));
    state["state"] = "pinned";
    s.kv_blocks.Add(state).Set(static_cast<double>(rank.kv_blocks_pinned));
    state["state"] = "free";
    s.kv_blocks.Add(state).Set(total - held - static_cast<double>(rank.kv_blocks_cached));
    for (const auto& [phase, seconds] : rank.phase_seconds) {
      Labels with_phase = labels;
      with_phase["phase"] = phase;
      s.Advance(s.phase_seconds.Add(with_phase), absl::StrCat(key, "phase/", phase), seconds);
    }
    for (const CollectiveSample& collective : rank.collectives) {
      Labels with_operation = labels;
      with_operation["op"] = collective.operation;
      const auto advance = [&](Family<Counter>& family, const char* what, double value) {
        s.Advance(family.Add(with_operation), absl::StrCat(key, what, collective.operation), value);
      };
      advance(s.collective_bytes, "bytes/", collective.bytes);
      advance(s.collective_calls, "calls/", collective.calls);
      advance(s.collective_seconds, "seconds/", collective.seconds);
    }
  }
}

void Metrics::GroupLost(std::string_view group) {
  State& s = *state_;
  absl::MutexLock lock(&s.mutex);
  for (const Labels& labels : s.ranks_of_group[std::string(group)]) {
    s.rank_up.Add(labels).Set(0);
    s.kv_ratio.Add(labels).Set(0);
    for (const char* state : {"used", "cached", "pinned", "free"}) {
      Labels blocks = labels;
      blocks["state"] = state;
      s.kv_blocks.Add(blocks).Set(0);
    }
  }
}

void Metrics::GroupRestarted() { state_->group_restarts.Add({}).Increment(); }

void Metrics::SetServerState(std::string_view state) {
  for (const char* name : kServerStates) {
    state_->server_state.Add({{"state", name}}).Set(name == state ? 1 : 0);
  }
}

void Metrics::HttpRequest(std::string_view route, std::string_view method, int code) {
  state_->http_requests
      .Add({{"route", std::string(route)},
            {"method", std::string(method)},
            {"code", absl::StrCat(code)}})
      .Increment();
}

void Metrics::GrpcRequest(std::string_view method, std::string_view code) {
  state_->grpc_requests.Add({{"method", std::string(method)}, {"code", std::string(code)}})
      .Increment();
}

void Metrics::SetHttpConnections(int64_t count) {
  state_->http_connections.Set(static_cast<double>(count));
}

std::string Metrics::Serialize() const {
  return prometheus::TextSerializer().Serialize(state_->registry->Collect()) + ProcessMetrics();
}

}  // namespace apb::observability
