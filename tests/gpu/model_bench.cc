// Goal: the speed of a whole model on one device. Method: runs a model with random weights in the
// engine itself, in three parts:
//   decode  decode steps of a few sequences, as recorded graphs and operation by operation,
//           compared with the time of copying the bytes that a step reads
//   whole   a prefill on one rank: seconds, TFLOP/s, the fraction of the device's matrix peak,
//           and a layer's time in matrix products and in attention
//   hosts   the prefill's work of each rank of a large group, one rank after the other, for apb,
//           star, ring_kv and full. The time of links is a model: bytes and messages over stated
//           rates. apb and star wait for all of it; the ring hides it as far as compute covers it.
// usage: model_bench FILE.json [--name value]...   (options below; numbers are appended to FILE)
// It also runs on CPUs, to test it with small shapes: --device cpu --shape tiny --lengths 512 ...
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "engine/base/status_macros.h"
#include "engine/context_parallel/cost.h"
#include "engine/context_parallel/strategies.h"
#include "engine/executor/document_prefill.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/bench/bench_shapes.h"
#include "tests/gpu/decode_steps.h"
#include "tests/gpu/solo_communicator.h"

namespace apb::bench {
namespace {

using kernels::Backend;
using kernels::DType;
using kernels::Stream;
using kernels::TensorView;

struct Options {
  std::string device = "cuda", shape = "8b";
  std::vector<int64_t> sequences = {1, 1, 16}, depths = {64, 65536, 4096};  // of `decode`, in pairs
  std::vector<int64_t> lengths = {32768, 131072};                           // of `whole`
  int64_t length = 131072;                                                  // of `hosts`
  int64_t hosts = 8, layers = 0, query = 64, retaining_width = 1024, product = 8192;
};

bool ParseNumbers(const std::string& text, std::vector<int64_t>* numbers) {
  numbers->clear();
  for (const std::string& word : std::vector<std::string>(absl::StrSplit(text, ','))) {
    int64_t number = 0;
    if (!absl::SimpleAtoi(word, &number) || number < 1) return false;
    numbers->push_back(number);
  }
  return true;
}

absl::StatusOr<Options> ParseOptions(int argc, char** argv) {
  Options o;
  const std::map<std::string, int64_t*> counts = {{"--length", &o.length},
                                                  {"--hosts", &o.hosts},
                                                  {"--layers", &o.layers},
                                                  {"--query", &o.query},
                                                  {"--retaining-width", &o.retaining_width},
                                                  {"--product", &o.product}};
  for (int i = 2; i < argc; i += 2) {
    const std::string name = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    std::vector<int64_t> numbers;
    if (name == "--device" && (value == "cuda" || value == "cpu")) {
      o.device = value;
    } else if (name == "--shape") {
      o.shape = value;
    } else if (name == "--lengths" && ParseNumbers(value, &numbers)) {
      o.lengths = numbers;
    } else if (name == "--sequences" && ParseNumbers(value, &numbers)) {
      o.sequences = numbers;
    } else if (name == "--depths" && ParseNumbers(value, &numbers)) {
      o.depths = numbers;
    } else if (counts.count(name) > 0 && ParseNumbers(value, &numbers) && numbers.size() == 1) {
      *counts.at(name) = numbers[0];
    } else {
      return absl::InvalidArgumentError(absl::StrCat("not understood: ", name, " ", value));
    }
  }
  if (o.sequences.size() != o.depths.size())
    return absl::InvalidArgumentError("--sequences and --depths must be as many");
  return o;
}

class Bench {
 public:
  static absl::StatusOr<std::unique_ptr<Bench>> Create(const Options& options,
                                                       const char* json_path);
  ~Bench() { std::fclose(json_); }

  absl::Status MeasurePeak();
  absl::Status MeasureDecode();
  absl::Status MeasureWhole(int64_t length);
  absl::Status MeasureHosts();

 private:
  struct Work {
    double seconds = 0;        // of the whole prefill
    double layer_seconds = 0;  // median of the layers
    double flops = 0;
    int64_t messages = 0, bytes = 0;
  };

  explicit Bench(const Options& options) : options_(options) {}
  void Report(const std::string& name, const char* unit, double value, double ceiling = 0);
  absl::StatusOr<core::Tensor> Random(std::initializer_list<int64_t> shape);
  // Median seconds of a call.
  absl::StatusOr<double> Seconds(const std::function<absl::Status()>& call);
  absl::StatusOr<context_parallel::ShardPlan> PlanOf(const std::string& strategy, int64_t length,
                                                     int ranks) const;
  // Runs the prefill's work of `rank` of `ranks`.
  absl::StatusOr<Work> RunRank(const std::string& strategy, int64_t length, int rank, int ranks);
  absl::StatusOr<double> ProductSeconds(int64_t rows);
  absl::StatusOr<double> AttentionSeconds(int64_t length);

  const Options options_;
  std::FILE* json_ = nullptr;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<model::Weights> weights_;
  std::unique_ptr<model::Decoder> decoder_;
  context_parallel::ModelShape shape_;
  double peak_ = 0;                   // FLOP/s of a large matrix product
  std::map<int64_t, Work> of_whole_;  // by length
};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::StatusOr<std::unique_ptr<Bench>> Bench::Create(const Options& options,
                                                     const char* json_path) {
  std::unique_ptr<Bench> bench(new Bench(options));
  bench->json_ = std::fopen(json_path, "a");
  if (bench->json_ == nullptr) return absl::InvalidArgumentError(absl::StrCat("open ", json_path));
  APB_ASSIGN_OR_RETURN(bench->backend_,
                       options.device == "cpu"
                           ? kernels::CreateCpuBackend({.threads = 0, .force_isa = ""})
                           : kernels::CreateCudaBackend(0));
  APB_ASSIGN_OR_RETURN(bench->stream_, bench->backend_->NewStream());
  APB_ASSIGN_OR_RETURN(model::ModelConfig config, NamedShape(options.shape));
  config.tied_embeddings = true;  // a prefill needs no output projection
  if (options.layers > 0) config.layers = static_cast<int32_t>(options.layers);
  const double start = Now();
  APB_ASSIGN_OR_RETURN(bench->weights_, model::Weights::Random(config, 1, options.retaining_width,
                                                               *bench->backend_));
  APB_ASSIGN_OR_RETURN(bench->decoder_, model::Decoder::Create(*bench->weights_, *bench->backend_));
  bench->shape_ = {.layers = config.layers,
                   .hidden_size = config.hidden_size,
                   .mlp_size = config.mlp_size,
                   .query_heads = config.query_heads,
                   .kv_heads = config.kv_heads,
                   .head_dim = config.head_dim,
                   .retaining_width = options.retaining_width};
  std::printf("%s, shape %s, %d layers, random weights made in %.1f s\n",
              std::string(bench->backend_->name()).c_str(), options.shape.c_str(), config.layers,
              Now() - start);
  return bench;
}

void Bench::Report(const std::string& name, const char* unit, double value, double ceiling) {
  std::printf("%-64s %9.3f %-8s", name.c_str(), value, unit);
  if (ceiling > 0) std::printf(" %5.1f %%", 100 * value / ceiling);
  std::printf("\n");
  std::fflush(stdout);
  std::fprintf(json_, "{\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"ceiling\": %.6g}\n",
               name.c_str(), value, unit, ceiling);
  std::fflush(json_);
}

// Random numbers: with zeros, a device would run faster than with real data.
absl::StatusOr<core::Tensor> Bench::Random(std::initializer_list<int64_t> shape) {
  static const std::vector<uint16_t> noise = [] {
    std::mt19937 rng(5);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> bits(1 << 20);
    for (uint16_t& b : bits) {
      const float x = normal(rng);
      uint32_t word;
      std::memcpy(&word, &x, sizeof word);
      b = static_cast<uint16_t>(word >> 16);
    }
    return bits;
  }();
  APB_ASSIGN_OR_RETURN(core::Tensor tensor, core::Tensor::Create(*backend_, DType::kBF16, shape));
  const int64_t count = tensor.view().numel(), piece = static_cast<int64_t>(noise.size());
  for (int64_t at = 0; at < count; at += piece) {
    const int64_t part = std::min(piece, count - at);
    backend_->Copy(
        TensorView::Contiguous(const_cast<uint16_t*>(noise.data()), DType::kBF16, {part}),
        TensorView::Contiguous(tensor.view().as<uint16_t>() + at, DType::kBF16, {part}), *stream_);
  }
  APB_RETURN_IF_ERROR(stream_->Synchronize());
  return tensor;
}

absl::StatusOr<double> Bench::Seconds(const std::function<absl::Status()>& call) {
  constexpr int kWarmUps = 2, kRepeats = 5;
  std::vector<double> seconds;
  for (int i = 0; i < kWarmUps + kRepeats; ++i) {
    const double start = Now();
    APB_RETURN_IF_ERROR(call());
    APB_RETURN_IF_ERROR(stream_->Synchronize());
    if (i >= kWarmUps) seconds.push_back(Now() - start);
  }
  return Median(std::move(seconds));
}

absl::Status Bench::MeasurePeak() {
  const int64_t n = options_.product;
  APB_ASSIGN_OR_RETURN(const core::Tensor x, Random({n, n}));
  APB_ASSIGN_OR_RETURN(const core::Tensor w, Random({n, n}));
  APB_ASSIGN_OR_RETURN(const core::Tensor y, Random({n, n}));
  constexpr int kProducts = 5;  // so that launching takes a small part of the time
  APB_ASSIGN_OR_RETURN(const double seconds, Seconds([&] {
                         for (int i = 0; i < kProducts; ++i)
                           backend_->Linear({.x = x.view(), .weight = w.view(), .out = y.view()},
                                            *stream_);
                         return absl::OkStatus();
                       }));
  peak_ = kProducts * 2.0 * static_cast<double>(n * n * n) / seconds;
  Report(absl::StrFormat("matrix product %d^3 bf16", n), "TFLOP/s", peak_ * 1e-12);
  return absl::OkStatus();
}

absl::Status Bench::MeasureDecode() {
  const int64_t n = options_.product * options_.product * 8;  // more than the caches hold
  APB_ASSIGN_OR_RETURN(const core::Tensor from, Random({n}));
  APB_ASSIGN_OR_RETURN(const core::Tensor to, Random({n}));
  APB_ASSIGN_OR_RETURN(const double copy, Seconds([&] {
                         backend_->Copy(from.view(), to.view(), *stream_);
                         return absl::OkStatus();
                       }));
  const double rate = 2.0 * 2.0 * static_cast<double>(n) / copy;  // bytes read plus written
  Report("copy", "GB/s", rate * 1e-9);
  for (size_t i = 0; i < options_.sequences.size(); ++i) {
    const int64_t sequences = options_.sequences[i], depth = options_.depths[i];
    APB_ASSIGN_OR_RETURN(const DecodeSteps steps,
                         MeasureDecodeSteps(*weights_, *backend_, sequences, depth));
    const std::string name = absl::StrFormat("decode, %d x %d tokens, ", sequences, depth);
    if (steps.recorded_seconds > 0) {
      Report(name + "a step as a graph", "ms", steps.recorded_seconds * 1e3);
      Report(name + "it reads", "GB/s", steps.bytes / steps.recorded_seconds * 1e-9, rate * 1e-9);
    }
    Report(name + "a step by operations", "ms", steps.plain_seconds * 1e3);
  }
  return absl::OkStatus();
}

absl::StatusOr<context_parallel::ShardPlan> Bench::PlanOf(const std::string& strategy,
                                                          int64_t length, int ranks) const {
  const int64_t query = std::min(options_.query, length - 1);
  return context_parallel::MakeShardPlan(
      strategy,
      {.document_length = length - query, .query_length = query, .embedded_query_length = query},
      {.hosts = strategy == "full" ? 1 : ranks});
}

absl::StatusOr<Bench::Work> Bench::RunRank(const std::string& strategy, int64_t length, int rank,
                                           int ranks) {
  APB_ASSIGN_OR_RETURN(const context_parallel::ShardPlan plan, PlanOf(strategy, length, ranks));
  SoloCommunicator communicator(rank, ranks, *backend_);
  constexpr int64_t kBlock = 32;
  const int64_t kept = context_parallel::DocumentTokensOfRank(plan, ranks, rank);
  APB_ASSIGN_OR_RETURN(auto cache, cache::PagedKvCache::Create({.layers = shape_.layers,
                                                                .kv_heads = shape_.kv_heads,
                                                                .head_dim = shape_.head_dim,
                                                                .block_size = kBlock,
                                                                .block_count = kept / kBlock + 1},
                                                               *backend_));
  std::vector<int32_t> tokens(length);
  for (int64_t i = 0; i < length; ++i)
    tokens[i] = static_cast<int32_t>((i * 7919 + 13) % weights_->config().vocab_size);
  const std::span<const int32_t> all(tokens);
  const size_t document = static_cast<size_t>(plan.document_length());
  cache::SequenceKv kv;
  Work work;
  const double start = Now();
  APB_ASSIGN_OR_RETURN(auto prefill, executor::DocumentPrefill::Start(
                                         {.decoder = *decoder_,
                                          .weights = *weights_,
                                          .cache = *cache,
                                          .backend = *backend_,
                                          .communicator = communicator},
                                         {{.plan = plan,
                                           .tokens = all.first(document),
                                           .embedded_query = all.subspan(document),
                                           .compressor = strategy == "apb" ? "retaining_heads" : "",
                                           .kv = &kv}},
                                         *stream_));
  APB_RETURN_IF_ERROR(stream_->Synchronize());
  work.seconds = Now() - start;
  // The first layer allocates memory and fills the receive buffers with real numbers.
  APB_RETURN_IF_ERROR(prefill->RunLayers(0, 1, *stream_));
  APB_RETURN_IF_ERROR(stream_->Synchronize());
  communicator.Echo(false);
  const int64_t messages = communicator.messages(), bytes = communicator.bytes_sent();
  std::vector<double> layers;
  for (int l = 0; l < shape_.layers; ++l) {
    const double begin = Now();
    APB_RETURN_IF_ERROR(prefill->RunLayers(l, l + 1, *stream_));
    APB_RETURN_IF_ERROR(stream_->Synchronize());
    layers.push_back(Now() - begin);
    work.seconds += layers.back();
  }
  work.layer_seconds = Median(std::move(layers));
  work.messages = communicator.messages() - messages;
  work.bytes = communicator.bytes_sent() - bytes;
  // On a machine of 1 FLOP/s, the seconds are the number of operations.
  work.flops = context_parallel::PredictPrefill(plan, ranks, 0, shape_,
                                                {.product_flops = 1, .attention_flops = 1})
                   .compute_seconds[rank];
  decoder_->Trim();
  return work;
}

// Seconds of one layer's matrix products, in the decoder's chunks of rows.
absl::StatusOr<double> Bench::ProductSeconds(int64_t rows) {
  const int64_t chunk = std::min<int64_t>(rows, 4096);
  const model::LayerWeights& layer = weights_->layer(0);
  std::vector<TensorView> all = {layer.o_proj, layer.down_proj};
  const auto add = [&](const TensorView& packed, std::initializer_list<TensorView> parts) {
    if (packed.present()) all.push_back(packed);
    if (!packed.present()) all.insert(all.end(), parts);
  };
  add(layer.qkv_proj, {layer.q_proj, layer.k_proj, layer.v_proj});
  add(layer.gate_up_proj, {layer.gate_proj, layer.up_proj});
  int64_t widest = 0;
  for (const TensorView& w : all) widest = std::max({widest, w.shape[0], w.shape[1]});
  APB_ASSIGN_OR_RETURN(const core::Tensor x, Random({chunk, widest}));
  APB_ASSIGN_OR_RETURN(const core::Tensor y, Random({chunk, widest}));
  APB_ASSIGN_OR_RETURN(const double seconds, Seconds([&] {
                         for (const TensorView& w : all)
                           backend_->Linear({.x = x.view().Columns(0, w.shape[1]),
                                             .weight = w,
                                             .out = y.view().Columns(0, w.shape[0])},
                                            *stream_);
                         return absl::OkStatus();
                       }));
  return seconds * static_cast<double>(rows) / static_cast<double>(chunk);
}

absl::StatusOr<double> Bench::AttentionSeconds(int64_t length) {
  const int64_t d = shape_.head_dim;
  APB_ASSIGN_OR_RETURN(const core::Tensor q, Random({length, shape_.query_heads, d}));
  APB_ASSIGN_OR_RETURN(const core::Tensor out, Random({length, shape_.query_heads, d}));
  APB_ASSIGN_OR_RETURN(const core::Tensor k, Random({length, shape_.kv_heads, d}));
  APB_ASSIGN_OR_RETURN(const core::Tensor v, Random({length, shape_.kv_heads, d}));
  std::vector<int32_t> numbers(length);
  for (int64_t i = 0; i < length; ++i) numbers[i] = static_cast<int32_t>(i);
  APB_ASSIGN_OR_RETURN(const core::Tensor at,
                       core::Tensor::CopyOf(*backend_, TensorView::Contiguous(
                                                           numbers.data(), DType::kI32, {length})));
  const kernels::KeySegment keys{.k = k.view(), .v = v.view(), .positions = at.view()};
  return Seconds([&] {
    backend_->Attention({.q = q.view(),
                         .q_positions = at.view(),
                         .keys = {&keys, 1},
                         .scale = 1 / std::sqrt(static_cast<float>(d)),
                         .out = out.view()},
                        *stream_);
    return absl::OkStatus();
  });
}

absl::Status Bench::MeasureWhole(int64_t length) {
  APB_ASSIGN_OR_RETURN(const Work work, RunRank("full", length, 0, 1));
  of_whole_[length] = work;
  const std::string name = absl::StrFormat("prefill of %d tokens, ", length);
  Report(name + "whole model time", "s", work.seconds);
  Report(name + "whole model rate", "TFLOP/s", work.flops / work.seconds * 1e-12, peak_ * 1e-12);
  APB_ASSIGN_OR_RETURN(const double products, ProductSeconds(length));
  APB_ASSIGN_OR_RETURN(const double attention, AttentionSeconds(length));
  Report(name + "one layer", "ms", work.layer_seconds * 1e3);
  Report(name + "its matrix products alone", "ms", products * 1e3, work.layer_seconds * 1e3);
  Report(name + "its attention alone", "ms", attention * 1e3, work.layer_seconds * 1e3);
  return absl::OkStatus();
}

struct Link {
  const char* name;
  double bytes_per_second, latency_seconds;
};
constexpr Link kLinks[] = {{"NVLink 400 GB/s, 10 us", 400e9, 10e-6},
                           {"network 200 Gbit/s, 20 us", 25e9, 20e-6}};

absl::Status Bench::MeasureHosts() {
  const int64_t length = options_.length;
  const int ranks = static_cast<int>(options_.hosts);
  const std::string of = absl::StrFormat(", %d tokens on %d hosts", length, ranks);
  std::map<std::string, std::array<double, 2>> seconds;  // by strategy, by link
  for (const std::string strategy : {"apb", "star", "ring_kv", "full"}) {
    std::vector<Work> all;
    for (int rank = 0; rank < (strategy == "full" ? 1 : ranks); ++rank) {
      APB_ASSIGN_OR_RETURN(Work work, RunRank(strategy, length, rank, ranks));
      Report(absl::StrFormat("%s%s, host %d alone", strategy, of, rank), "s", work.seconds);
      all.push_back(work);
    }
    double slowest = 0;
    int64_t bytes = 0;
    for (const Work& work : all) {
      slowest = std::max(slowest, work.seconds);
      bytes = std::max(bytes, work.bytes);
    }
    Report(strategy + of + ", slowest host alone", "s", slowest);
    Report(strategy + of + ", a host sends", "MB", static_cast<double>(bytes) * 1e-6);
    for (size_t i = 0; i < 2; ++i) {
      double& total = seconds[strategy][i];
      for (const Work& work : all) {
        const double links = static_cast<double>(work.messages) * kLinks[i].latency_seconds +
                             static_cast<double>(work.bytes) / kLinks[i].bytes_per_second;
        total = std::max(
            total, strategy == "ring_kv" ? std::max(work.seconds, links) : work.seconds + links);
      }
      Report(absl::StrCat(strategy, of, ", modelled with ", kLinks[i].name), "s", total);
    }
  }
  for (const std::string other : {"full", "ring_kv", "star"}) {
    for (size_t i = 0; i < 2; ++i) {
      Report(absl::StrCat("apb is faster than ", other, of, ", ", kLinks[i].name), "times",
             seconds[other][i] / seconds["apb"][i]);
    }
  }
  return absl::OkStatus();
}

absl::Status Run(const Options& options, const char* json_path) {
  APB_ASSIGN_OR_RETURN(auto bench, Bench::Create(options, json_path));
  APB_RETURN_IF_ERROR(bench->MeasurePeak());
  APB_RETURN_IF_ERROR(bench->MeasureDecode());
  for (const int64_t length : options.lengths) APB_RETURN_IF_ERROR(bench->MeasureWhole(length));
  return bench->MeasureHosts();
}

int Main(int argc, char** argv) {
  absl::StatusOr<Options> options = absl::InvalidArgumentError(
      "usage: model_bench FILE.json [--device cuda|cpu] [--shape 8b] [--layers n] "
      "[--sequences n,n] [--depths n,n] [--lengths n,n] "
      "[--length n] [--hosts n] [--query n] [--retaining-width n] [--product n]");
  if (argc > 1) options = ParseOptions(argc, argv);
  const absl::Status status = options.ok() ? Run(*options, argv[1]) : options.status();
  if (status.ok()) return 0;
  std::fprintf(stderr, "model_bench: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace apb::bench

int main(int argc, char** argv) { return apb::bench::Main(argc, argv); }
