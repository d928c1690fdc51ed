#include "engine/worker/setup.h"

#include <sched.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/comm/agreement.h"
#include "engine/context_parallel/strategies.h"
#include "engine/worker/calibration.h"
#include "kernels/cuda/cuda_backend.h"

namespace apb::worker {
namespace {

int UsableCores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

std::optional<kernels::DType> TypeNamed(const std::string& name) {
  for (const kernels::DType type :
       {kernels::DType::kBF16, kernels::DType::kF16, kernels::DType::kF32}) {
    if (name == model::TorchName(type)) return type;
  }
  return std::nullopt;  // auto
}

std::string Gigabytes(int64_t bytes) { return absl::StrFormat("%.2f GB", bytes * 1e-9); }

// Logs the progress of loading every few seconds, and a summary at the end.
class LoadLog {
 public:
  void operator()(const model::LoadProgress& progress) {
    if (absl::Now() - last_ < kPause) return;
    last_ = absl::Now();
    APB_LOG(Info, "loading weights: ", progress.done_bytes * 100 / progress.total_bytes, " % (",
            Gigabytes(progress.done_bytes), " of ", Gigabytes(progress.total_bytes), "), ",
            Speed(progress.done_bytes));
  }
  void End(const model::Weights& weights) const {
    const model::LoadReport& report = weights.load_report();
    const std::string type(model::TorchName(weights.config().dtype));
    if (report.checkpoint_dtype != weights.config().dtype) {
      APB_LOG(Info, "the checkpoint's type is ",
              std::string(model::TorchName(report.checkpoint_dtype)), ", ", type, " is used");
    }
    std::string copied;
    if (report.copied_bytes > 0) {
      copied = absl::StrCat(Gigabytes(report.copied_bytes), " copied, ", report.converted_tensors,
                            " tensors of another type converted, ", Speed(report.copied_bytes));
    }
    APB_LOG(Info, "weights: ", type, ", ", copied, copied.empty() ? "" : "; ",
            Gigabytes(report.mapped_bytes), " used where the files are mapped");
    LogQuantization(weights);
  }

 private:
  static void LogQuantization(const model::Weights& weights) {
    const model::LoadReport& report = weights.load_report();
    const model::QuantizationConfig& published = weights.config().quantization;
    if (published.quantizes_activations) {
      APB_LOG(Info,
              "the checkpoint's quantization_config quantizes activations too; here they stay ",
              std::string(model::TorchName(weights.config().dtype)));
    }
    if (report.quantized_again > 0) {
      APB_LOG(Warning, report.quantized_again,
              " weights whose inputs are ordered by activation (desc_act, actorder) were quantized "
              "again, to int8");
    }
    for (const std::string& why : report.unquantized) {
      APB_LOG(Warning, "not quantized: ", why, ", which is not a multiple of ",
              kernels::kBlockLength);
    }
    if (report.int8_products + report.int4_products == 0) return;
    APB_LOG(Info, "quantized weights: of ", report.products, " products ", report.int4_products,
            " int4 and ", report.int8_products, " int8, ", Gigabytes(report.quantized_bytes));
  }
  static constexpr absl::Duration kPause = absl::Seconds(5);
  std::string Speed(int64_t bytes) const {
    const double seconds = std::max(1e-3, absl::ToDoubleSeconds(absl::Now() - start_));
    return absl::StrCat(Gigabytes(static_cast<int64_t>(bytes / seconds)), "/s");
  }
  const absl::Time start_ = absl::Now();
  absl::Time last_ = start_;
};

// Loads this rank's share of the weights. Only the first rank logs.
absl::Status LoadOnThisRank(const WorkerOptions& options, int threads, bool first_rank,
                            Engine& engine) {
  const comm::Communicator* tensor = engine.device.mesh->tensor();
  const model::Share share =
      tensor == nullptr ? model::Share{} : model::Share{tensor->rank(), tensor->size()};
  LoadLog log;
  model::LoadOptions load{.dtype = TypeNamed(options.dtype),
                          .quantize = model::BlockTypeNamed(options.quantize),
                          .threads = threads};
  if (first_rank) load.progress = std::ref(log);
  APB_ASSIGN_OR_RETURN(engine.weights,
                       model::Weights::Load(options.model, *engine.device.backend, share, load));
  if (first_rank) log.End(*engine.weights);
  return absl::OkStatus();
}

// KV blocks of one rank: as many as the options ask for, else as many as fit into its memory, but
// for the whole group at most twice the model's max_positions (at least 65536 tokens).
int64_t BlocksPerRank(const WorkerOptions& options, const model::ModelConfig& config,
                      const cache::KvCacheShape& shape, int64_t memory, int64_t context_ranks) {
  int64_t tokens = options.kv_cache_tokens;
  if (tokens == 0) {
    const int64_t bytes_per_token =
        std::max<int64_t>(1, shape.bytes_per_block() / shape.block_size);
    const int64_t fits = memory / bytes_per_token;
    tokens =
        std::min<int64_t>(fits * context_ranks, std::max<int64_t>(2 * config.max_positions, 65536));
  }
  const int64_t per_rank = (tokens + context_ranks - 1) / context_ranks;
  return std::max<int64_t>(1, (per_rank + shape.block_size - 1) / shape.block_size);
}

// Seconds of a decode step of one token: the best of a few.
absl::StatusOr<float> SecondsOfStep(executor::StepExecutor& executor) {
  const schedule::SequenceId id{};
  schedule::StepPlan plan;
  // There is no document, so the strategy does nothing.
  const context_parallel::StrategyInfo& strategy =
      context_parallel::FirstExact(context_parallel::HostsRule::kOne);
  plan.admissions.push_back({.id = id, .tokens = {0}, .strategy = std::string(strategy.name)});
  constexpr int kSteps = 5;
  double best = 0;
  for (int step = 0; step < kSteps; ++step) {
    plan.spans = {{.id = id, .position = step, .tokens = {0}, .sample = true}};
    const absl::Time start = absl::Now();
    APB_RETURN_IF_ERROR(executor.Execute(plan).status());
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    // The first step reads weights that nothing has read before, so it does not count.
    if (step == 1 || (step > 1 && seconds < best)) best = seconds;
    plan = {};
  }
  plan.releases = {id};
  APB_RETURN_IF_ERROR(executor.Execute(plan).status());
  return static_cast<float>(best);
}

// Chooses whether query and decode tokens are computed replicated or sliced: as the options say, or
// what measured steps show to be faster.
absl::Status ChooseDecodeMode(const WorkerOptions& options, Engine& engine,
                              comm::Communicator& control) {
  if (options.decode == "replicated" || engine.device.mesh->cp_group().size() == 1)
    return absl::OkStatus();
  executor::StepExecutor& executor = *engine.executor;
  if (!executor.SetSliced(true)) {
    const absl::Status& why = executor.why_not_sliced();
    if (options.decode == "auto") {
      APB_LOG(Info, "decode: replicated is used, since ", std::string(why.message()));
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat("--decode sliced: ", why.message()));
  }
  if (options.decode == "sliced") return absl::OkStatus();
  float seconds[2];  // replicated, sliced
  for (const bool sliced : {false, true}) {
    executor.SetSliced(sliced);
    APB_ASSIGN_OR_RETURN(const float mine, SecondsOfStep(executor));
    APB_ASSIGN_OR_RETURN(seconds[sliced], comm::MaxOverRanks(control, mine));
  }
  // Sliced must be clearly faster, so that the next start decides alike: the two modes round
  // differently.
  executor.SetSliced(seconds[1] < 0.9f * seconds[0]);
  APB_LOG(Info, "decode step: replicated ", seconds[0] * 1e3, " ms, sliced ", seconds[1] * 1e3,
          " ms: ", executor.sliced() ? "sliced" : "replicated", " is used");
  return absl::OkStatus();
}

// The GPU memory that is left for the activations of a prefill, on the rank that has least. A tenth
// of it stays for the scratch memory of kernels.
absl::StatusOr<int64_t> PrefillBytes(const Device& device, comm::Communicator& control) {
  if (device.backend->place() == kernels::Place::kCpu) return 0;
  APB_ASSIGN_OR_RETURN(const int64_t free, kernels::FreeCudaBytes());
  APB_ASSIGN_OR_RETURN(const int64_t least,
                       comm::MinOverRanks(control, free / 10 * 9 / device.ranks_on_it));
  return std::max<int64_t>(least, 1 << 20);
}

absl::Status MeasureSpeed(const WorkerOptions& options, Engine& engine) {
  const absl::Time start = absl::Now();
  if (options.calibrate) {
    APB_ASSIGN_OR_RETURN(engine.speed, Calibrate(*engine.weights, *engine.device.backend,
                                                 engine.device.mesh->cp_group()));
  }
  APB_LOG(Info, "calibration ", options.calibrate ? "measured" : "off, assumed",
          " product_gflops=", engine.speed.product_flops * 1e-9,
          " attention_gflops=", engine.speed.attention_flops * 1e-9,
          " link_gb_per_second=", engine.speed.link_bytes_per_second * 1e-9,
          " link_latency_us=", engine.speed.link_latency_seconds * 1e6,
          " seconds=", absl::ToDoubleSeconds(absl::Now() - start));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Engine> SetUp(const WorkerOptions& options, comm::MpiRuntime& mpi) {
  const absl::Time start = absl::Now();
  Engine engine;
  const int threads =
      options.threads > 0 ? options.threads : std::max(1, UsableCores() / mpi.local_size());
  APB_ASSIGN_OR_RETURN(const auto control,
                       mpi.NewCommunicator(absl::Seconds(options.collective_timeout_seconds)));
  APB_ASSIGN_OR_RETURN(engine.device, ChooseDevice(options, threads, mpi, *control));
  const absl::Status loaded = LoadOnThisRank(options, threads, mpi.rank() == 0, engine);
  APB_ASSIGN_OR_RETURN(const bool all_loaded, comm::AllAgree(*control, loaded.ok()));
  APB_RETURN_IF_ERROR(loaded);
  if (!all_loaded) return absl::FailedPreconditionError("another rank could not load the model");

  const model::ModelConfig& config = engine.weights->config();
  engine.shape = {.layers = config.layers,
                  .kv_heads = engine.weights->kv_heads(),
                  .head_dim = config.head_dim,
                  .block_size = options.kv_block_size,
                  .block_count = 0,
                  .dtype = config.dtype};
  const int context_ranks = engine.device.mesh->cp_group().size();
  APB_ASSIGN_OR_RETURN(const int64_t memory, KvCacheBytes(options, engine.device));
  const int64_t mine = BlocksPerRank(options, config, engine.shape, memory, context_ranks);
  APB_ASSIGN_OR_RETURN(engine.shape.block_count, comm::MinOverRanks(*control, mine));
  APB_ASSIGN_OR_RETURN(engine.executor,
                       executor::StepExecutor::Create(*engine.weights, engine.shape,
                                                      *engine.device.backend, *engine.device.mesh));
  if (!options.cuda_graphs) engine.executor->DisableGraphs();
  APB_RETURN_IF_ERROR(ChooseDecodeMode(options, engine, *control));
  engine.executor->SetOverlap(options.overlap);
  APB_RETURN_IF_ERROR(MeasureSpeed(options, engine));
  APB_ASSIGN_OR_RETURN(engine.prefill_bytes, PrefillBytes(engine.device, *control));

  const int64_t pool_tokens = engine.shape.block_count * engine.shape.block_size * context_ranks;
  engine.max_model_len = std::min(
      pool_tokens, options.max_model_len > 0 ? options.max_model_len : config.max_positions);
  engine.load_seconds = absl::ToDoubleSeconds(absl::Now() - start);
  APB_LOG(Info, "model ", options.model, " ", config.architecture, " layers=", config.layers,
          " backend=", std::string(engine.device.backend->name()),
          " graphs=", engine.executor->uses_graphs() ? "on" : "off", " threads=", threads,
          " kv_tokens=", engine.shape.block_count * engine.shape.block_size, " (",
          engine.shape.bytes_per_block() * engine.shape.block_count >> 20,
          " MiB) prefill=", engine.prefill_bytes >> 20, " MiB seconds=", engine.load_seconds);
  return engine;
}

}  // namespace apb::worker
