// Goal: the speed of the CPU kernels as a fraction of the machine's ceilings. Method: measures the
// ceilings (dot-product loops and a sweep of memory reads) and the kernels in the same run. Prints
// a table; --json FILE writes the same numbers.
#include <immintrin.h>
#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/weight_blocks.h"
#include "nlohmann/json.hpp"

namespace apb::kernels {
namespace {

struct Options {
  int threads = 0;
  int repeats = 5;
  std::string isa, clock = "wall", json_path, only;
  int64_t length = 32768;
};

struct Row {
  std::string name, unit;
  double value = 0, ceiling = 0;
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {
    auto backend = CreateCpuBackend({.threads = options.threads, .force_isa = options.isa});
    if (!backend.ok()) {
      std::fprintf(stderr, "kernels_bench: %s\n", std::string(backend.status().message()).c_str());
      std::exit(2);
    }
    backend_ = *std::move(backend);
    stream_ = *backend_->NewStream();
  }

  Backend& backend() { return *backend_; }
  Stream& stream() { return *stream_; }

  // Seconds of the fastest call.
  double Seconds(const std::function<void()>& call, int least_repeats = 1) {
    call();
    double best = 1e30;
    for (int i = 0; i < std::max(options_.repeats, least_repeats); ++i) {
      const double begin = Now();
      call();
      best = std::min(best, Now() - begin);
    }
    return best;
  }
  // 1e9 units of work per second, if a call does `work` units.
  double Rate(double work, const std::function<void()>& call, int least_repeats = 1) {
    return work / Seconds(call, least_repeats) / 1e9;
  }

  bool Wanted(const std::string& family) const {
    return options_.only.empty() || options_.only.find(family) != std::string::npos;
  }
  void Report(const std::string& name, const std::string& unit, double value, double ceiling) {
    rows_.push_back({name, unit, value, ceiling});
    std::printf("%-52s %9.1f %-8s", name.c_str(), value, unit.c_str());
    if (ceiling > 0) std::printf(" %5.1f %% of %.0f", 100 * value / ceiling, ceiling);
    std::printf("\n");
    std::fflush(stdout);
  }
  void CheckStream() {
    const absl::Status status = stream_->Synchronize();
    if (status.ok()) return;
    std::fprintf(stderr, "kernels_bench: %s\n", std::string(status.message()).c_str());
    std::exit(1);
  }
  TensorView Tensor(DType dtype, std::initializer_list<int64_t> shape) {
    TensorView view = TensorView::Contiguous(nullptr, dtype, shape);
    auto buffer = backend_->Allocate(BytesOf(dtype, view.numel()));
    if (!buffer.ok()) {
      std::fprintf(stderr, "kernels_bench: %s\n", std::string(buffer.status().message()).c_str());
      std::exit(1);
    }
    view.data = buffer->data();
    buffers_.push_back(*std::move(buffer));
    if (IsBlockType(dtype)) {  // all blocks are the same
      float weights[kBlockLength];
      for (int i = 0; i < kBlockLength; ++i) weights[i] = static_cast<float>(i * 7 % 16) - 7.5f;
      const int64_t bytes = BytesOf(dtype, kBlockLength);
      for (int64_t i = 0; i < view.numel() / kBlockLength; ++i)
        EncodeBlocks(weights, kBlockLength, dtype, view.as<char>() + i * bytes);
      return view;
    }
    // Numbers of low quality are enough: no kernel's time depends on the values of finite numbers.
    uint32_t state = 12345;
    for (int64_t i = 0; i < view.numel(); ++i) {
      state = state * 1664525u + 1013904223u;
      const float value = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
      if (dtype == DType::kF32) view.as<float>()[i] = value;
      if (dtype == DType::kBF16) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        view.as<uint16_t>()[i] = static_cast<uint16_t>(bits >> 16);
      }
      if (dtype == DType::kI32) view.as<int32_t>()[i] = static_cast<int32_t>(i);
    }
    return view;
  }
  void Release() { buffers_.clear(); }

  void WriteJson() const {
    if (options_.json_path.empty()) return;
    nlohmann::json all = {{"backend", std::string(backend_->name())},
                          {"threads", options_.threads},
                          {"clock", options_.clock},
                          {"rows", nlohmann::json::array()}};
    for (const Row& row : rows_) {
      all["rows"].push_back(
          {{"name", row.name}, {"unit", row.unit}, {"value", row.value}, {"ceiling", row.ceiling}});
    }
    std::ofstream(options_.json_path) << all.dump(2) << "\n";
  }

 private:
  double Now() const {
    if (options_.clock == "wall") {
      return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
          .count();
    }
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec)) /
           options_.threads;
  }

  const Options options_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  std::vector<Buffer> buffers_;
  std::vector<Row> rows_;
};

// ---- ceilings ----

struct Ceilings {
  double f32 = 0, bf16 = 0, int8 = 0, memory = 0;
  double Of(DType weights) const {
    if (IsBlockType(weights)) return int8;
    return weights == DType::kBF16 ? bf16 : f32;
  }
};

constexpr int64_t kLoops = 2000000;
// Many repeats: a ceiling that another process has lowered would flatter every kernel.
constexpr int kCeilingRepeats = 50;

__attribute__((target("avx512f"))) float FmaLoop() {
  __m512 acc[16];
  for (int i = 0; i < 16; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(1.0001f), b = _mm512_set1_ps(0.9999f);
  for (int64_t n = 0; n < kLoops; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) acc[i] = _mm512_fmadd_ps(acc[i], a, b);
  }
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += _mm512_cvtss_f32(acc[i]);
  return sum;
}
__attribute__((target("avx2,fma"))) float FmaLoopAvx2() {
  __m256 acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(1.0001f), b = _mm256_set1_ps(0.9999f);
  for (int64_t n = 0; n < kLoops; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = _mm256_fmadd_ps(acc[i], a, b);
  }
  float sum = 0;
  for (int i = 0; i < 12; ++i) sum += _mm256_cvtss_f32(acc[i]);
  return sum;
}
__attribute__((target("avx512f,avx512bf16"))) float DotLoop() {
  __m512 acc[16];
  for (int i = 0; i < 16; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80)), b = a;
  for (int64_t n = 0; n < kLoops; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
  }
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += _mm512_cvtss_f32(acc[i]);
  return sum;
}
__attribute__((target("avx512f,avx512vnni"))) float ByteDotLoop() {
  __m512i acc[16];
  for (int i = 0; i < 16; ++i) acc[i] = _mm512_set1_epi32(i);
  const __m512i a = _mm512_set1_epi32(0x01020304), b = a;
  for (int64_t n = 0; n < kLoops; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) acc[i] = _mm512_dpbusd_epi32(acc[i], a, b);
  }
  int sum = 0;
  for (int i = 0; i < 16; ++i) sum += _mm512_cvtsi512_si32(acc[i]);
  return static_cast<float>(sum);
}
__attribute__((target("amx-tile,amx-bf16"))) float AmxLoop() {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static const Config config;
  _tile_loadconfig(&config);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t n = 0; n < kLoops / 16; ++n) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 0;
}
// Reads four streams at once, with prefetches: a single stream reaches two thirds of their rate.
__attribute__((target("avx2"))) int64_t ReadSweep(const char* data, int64_t bytes) {
  __m256i sums[4] = {};
  const int64_t quarter = bytes / 4;
  for (int64_t i = 0; i < quarter; i += 64) {
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const char* at = data + s * quarter + i;
      __builtin_prefetch(at + 2048);
      const auto* p = reinterpret_cast<const __m256i*>(at);
      sums[s] = _mm256_xor_si256(sums[s], _mm256_load_si256(p));
      sums[s] = _mm256_xor_si256(sums[s], _mm256_load_si256(p + 1));
    }
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  return _mm256_extract_epi64(all, 0);
}

volatile float g_sink;

Ceilings MeasureCeilings(Bench& bench, int threads) {
  const auto parallel = [&](double flops, float (*loop)()) {
    return bench.Rate(
        flops * threads,
        [&] {
#pragma omp parallel num_threads(threads)
          g_sink = loop();
        },
        kCeilingRepeats);
  };
  Ceilings c;
  const std::string name(bench.backend().name());
  if (name == "cpu/amxbf16") {
    c.bf16 = parallel(kLoops / 16 * 4 * 16 * 16 * 32 * 2.0, AmxLoop);
  } else if (name == "cpu/avx512bf16") {
    c.bf16 = parallel(kLoops * 16 * 64.0, DotLoop);
  }
  if (name.starts_with("cpu/avx512") || name == "cpu/amxbf16") {
    c.f32 = parallel(kLoops * 16 * 32.0, FmaLoop);
  } else if (__builtin_cpu_supports("avx2")) {
    c.f32 = parallel(kLoops * 12 * 16.0, FmaLoopAvx2);
  }
  const bool bytes = c.bf16 > 0 || name == "cpu/avx512vnni";
  c.int8 = bytes ? parallel(kLoops * 16 * 128.0, ByteDotLoop) : c.f32;
  if (c.bf16 == 0) c.bf16 = c.f32;
  if (__builtin_cpu_supports("avx2")) {
    const int64_t bytes = 512 << 20;
    const TensorView memory = bench.Tensor(DType::kF32, {bytes / 4});
    c.memory = bench.Rate(static_cast<double>(bytes), [&] {
      const int64_t share = bytes / threads / 256 * 256;
#pragma omp parallel num_threads(threads)
      g_sink =
          static_cast<float>(ReadSweep(memory.as<char>() + omp_get_thread_num() * share, share));
    });
    bench.Release();
  }
  bench.Report("ceiling: bf16 products", "GFLOP/s", c.bf16, 0);
  bench.Report("ceiling: f32 products", "GFLOP/s", c.f32, 0);
  bench.Report("ceiling: int8 products", "GFLOP/s", c.int8, 0);
  bench.Report("ceiling: memory reads", "GB/s", c.memory, 0);
  return c;
}

// ---- families ----

std::string Name(const char* format, auto... values) {
  char text[128];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}
const char* TypeName(DType dtype) {
  if (IsBlockType(dtype)) return dtype == DType::kI8Block ? "int8" : "int4";
  return dtype == DType::kBF16 ? "bf16" : "f32";
}
// The type of x and of the output for weights of type `weights`.
DType ActivationsOf(DType weights) { return IsBlockType(weights) ? DType::kBF16 : weights; }
constexpr DType kWeightTypes[] = {DType::kBF16, DType::kF32, DType::kI8Block, DType::kI4Block};

void LinearFamily(Bench& bench, const Ceilings& c) {
  struct Shape {
    int64_t in, out;
  };
  for (DType dtype : kWeightTypes) {
    for (Shape s : {Shape{768, 1280}, {768, 4096}, {2048, 768}, {2048, 8192}}) {
      for (int64_t rows : {64, 1024}) {
        const TensorView x = bench.Tensor(ActivationsOf(dtype), {rows, s.in}),
                         w = bench.Tensor(dtype, {s.out, s.in}),
                         y = bench.Tensor(ActivationsOf(dtype), {rows, s.out});
        const double rate = bench.Rate(2.0 * rows * s.in * s.out, [&] {
          bench.backend().Linear({.x = x, .weight = w, .bias = {}, .out = y}, bench.stream());
        });
        bench.CheckStream();
        bench.Report(Name("linear %s %ld x %ld -> %ld", TypeName(dtype), rows, s.in, s.out),
                     "GFLOP/s", rate, c.Of(dtype));
        bench.Release();
      }
    }
  }
}

// Few rows: reading the weights bounds the time. There are more weights than the caches hold.
void SkinnyFamily(Bench& bench, const Ceilings& c) {
  for (DType dtype : kWeightTypes) {
    for (int64_t in : {768, 2048}) {
      const int64_t out = 4096, bytes = BytesOf(dtype, in * out), count = (256 << 20) / bytes;
      const TensorView w = bench.Tensor(dtype, {count * out, in});
      for (int64_t rows : {1, 2, 4, 5, 8, 16, 17, 32, 64}) {
        const TensorView x = bench.Tensor(ActivationsOf(dtype), {rows, in}),
                         y = bench.Tensor(ActivationsOf(dtype), {rows, out});
        const double rate = bench.Rate(static_cast<double>(count * bytes), [&] {
          for (int64_t i = 0; i < count; ++i) {
            bench.backend().Linear(
                {.x = x, .weight = w.Rows(i * out, (i + 1) * out), .bias = {}, .out = y},
                bench.stream());
          }
        });
        bench.CheckStream();
        bench.Report(
            Name("linear %s %ld x %ld -> %ld, weights read", TypeName(dtype), rows, in, out),
            "GB/s", rate, c.memory);
      }
      bench.Release();
    }
  }
}

void PrefillFamily(Bench& bench, const Ceilings& c, int64_t longest) {
  struct Shape {
    DType dtype;
    int64_t heads, kv_heads, d;
  };
  for (Shape s : {Shape{DType::kBF16, 12, 4, 64},
                  {DType::kBF16, 8, 2, 128},
                  {DType::kBF16, 8, 2, 80},
                  {DType::kF32, 12, 4, 64}}) {
    for (int64_t n = 1024; n <= (s.dtype == DType::kF32 ? longest / 4 : longest); n *= 4) {
      if (n * 4 > longest && n != longest && s.dtype != DType::kF32) n = longest;
      const TensorView q = bench.Tensor(s.dtype, {n, s.heads, s.d}),
                       k = bench.Tensor(s.dtype, {n, s.kv_heads, s.d}),
                       v = bench.Tensor(s.dtype, {n, s.kv_heads, s.d}),
                       out = bench.Tensor(s.dtype, {n, s.heads, s.d}),
                       at = bench.Tensor(DType::kI32, {n});
      std::vector<KeySegment> keys = {{k, v, at, {Visibility::kCausal, Visibility::kCausal}}};
      const double flops = 4.0 * s.heads * s.d * (0.5 * n * (n + 1));
      const double rate = bench.Rate(flops, [&] {
        bench.backend().Attention({.q = q,
                                   .q_positions = at,
                                   .keys = keys,
                                   .scale = 1 / std::sqrt(static_cast<float>(s.d)),
                                   .out = out},
                                  bench.stream());
      });
      bench.CheckStream();
      bench.Report(Name("prefill attention %s %ld/%ld x %ld, %ld causal", TypeName(s.dtype),
                        s.heads, s.kv_heads, s.d, n),
                   "GFLOP/s", rate, s.dtype == DType::kBF16 ? c.bf16 : c.f32);
      bench.Release();
    }
  }
}

void PagedCase(Bench& bench, const Ceilings& c, DType dtype, int64_t heads, int64_t kv_heads,
               int64_t d, int64_t sequences, int64_t rows, int64_t slots) {
  const int64_t block = 32, blocks = slots / block * sequences;
  const int64_t layer_bytes = 2 * blocks * kv_heads * block * d * int64_t(SizeOf(dtype));
  const int64_t layers = std::max<int64_t>(1, (256 << 20) / layer_bytes);
  const TensorView k = bench.Tensor(dtype, {layers * blocks, kv_heads, block, d}),
                   v = bench.Tensor(dtype, {layers * blocks, kv_heads, block, d}),
                   q = bench.Tensor(dtype, {sequences * rows, heads, d}),
                   out = bench.Tensor(DType::kF32, {sequences * rows, heads, d}),
                   lse = bench.Tensor(DType::kF32, {sequences * rows, heads}),
                   at = bench.Tensor(DType::kI32, {slots}),
                   q_at = bench.Tensor(DType::kI32, {sequences * rows});
  for (int64_t i = 0; i < sequences * rows; ++i) q_at.as<int32_t>()[i] = slots;
  // The order of the blocks defeats the hardware's prefetcher.
  std::vector<int32_t> table(blocks);
  for (int64_t i = 0; i < blocks; ++i) table[i] = static_cast<int32_t>(i * 7919 % blocks);
  std::vector<PagedRows> spans(sequences);
  std::vector<PagedSequence> all(sequences);
  for (int64_t i = 0; i < sequences; ++i) {
    spans[i] = {.begin = i * rows, .count = rows};
    all[i] = {.block_table = table.data() + i * (slots / block),
              .slot_positions = at.as<int32_t>(),
              .slot_count = slots,
              .causal_begin = slots - 64};
  }
  const double seconds = bench.Seconds([&] {
    for (int64_t l = 0; l < layers; ++l) {
      bench.backend().PagedAttention({.q = q,
                                      .q_positions = q_at,
                                      .k_cache = k.Rows(l * blocks, (l + 1) * blocks),
                                      .v_cache = v.Rows(l * blocks, (l + 1) * blocks),
                                      .rows = spans,
                                      .sequences = all.data(),
                                      .total_slots = sequences * slots,
                                      .scale = 1 / std::sqrt(static_cast<float>(d)),
                                      .out = out,
                                      .lse = lse},
                                     bench.stream());
    }
  });
  bench.CheckStream();
  const std::string name = Name("paged %s %ld/%ld x %ld, %ld seq x %ld rows x %ld slots",
                                TypeName(dtype), heads, kv_heads, d, sequences, rows, slots);
  if (rows <= 4) {
    bench.Report(name, "GB/s", static_cast<double>(layers * layer_bytes) / seconds / 1e9, c.memory);
  } else {
    bench.Report(name, "GFLOP/s",
                 4.0 * layers * sequences * rows * slots * heads * d / seconds / 1e9,
                 dtype == DType::kBF16 ? c.bf16 : c.f32);
  }
  bench.Release();
}

void PagedFamily(Bench& bench, const Ceilings& c) {
  PagedCase(bench, c, DType::kBF16, 12, 4, 64, 1, 1, 32768);
  PagedCase(bench, c, DType::kBF16, 12, 4, 64, 8, 1, 4096);
  PagedCase(bench, c, DType::kBF16, 12, 4, 64, 1, 1, 512);
  PagedCase(bench, c, DType::kBF16, 32, 8, 64, 1, 1, 32768);
  PagedCase(bench, c, DType::kBF16, 32, 8, 128, 1, 1, 32768);
  PagedCase(bench, c, DType::kBF16, 4, 4, 64, 1, 1, 32768);
  PagedCase(bench, c, DType::kBF16, 32, 4, 64, 1, 1, 32768);
  PagedCase(bench, c, DType::kF32, 12, 4, 64, 1, 1, 32768);
  PagedCase(bench, c, DType::kBF16, 12, 4, 64, 1, 4, 32768);
  PagedCase(bench, c, DType::kBF16, 12, 4, 64, 1, 256, 8192);
  PagedCase(bench, c, DType::kF32, 12, 4, 64, 1, 64, 8192);
}

void SampleFamily(Bench& bench) {
  struct Case {
    const char* name;
    SampleRow row;
  };
  const int64_t vocab = 128256;
  for (const Case& kind : {Case{"greedy", {.temperature = 0}},
                           {"temperature 0.8", {.uniform = 0.5, .temperature = 0.8f}},
                           {"top_p 0.95", {.uniform = 0.5, .temperature = 0.8f, .top_p = 0.95f}},
                           {"top_k 50", {.uniform = 0.5, .temperature = 0.8f, .top_k = 50}}}) {
    for (const int64_t rows : {1, 16}) {
      const TensorView logits = bench.Tensor(DType::kF32, {rows, vocab}),
                       tokens = bench.Tensor(DType::kI32, {rows});
      for (int64_t i = 0; i < logits.numel(); ++i) logits.as<float>()[i] *= 12;  // a typical range
      const std::vector<SampleRow> arguments(rows, kind.row);
      const double seconds = bench.Seconds([&] {
        bench.backend().Sample({.logits = logits, .rows = arguments.data(), .tokens = tokens},
                               bench.stream());
      });
      bench.CheckStream();
      bench.Report(Name("sample %s, %ld x %ld", kind.name, rows, vocab), "us", seconds * 1e6, 0);
      bench.Release();
    }
  }
}

void OtherFamily(Bench& bench, const Ceilings& c) {
  const int64_t n = 16384;
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    const double size = static_cast<double>(SizeOf(dtype));
    const TensorView x = bench.Tensor(dtype, {n, 2048}), y = bench.Tensor(dtype, {n, 2048}),
                     w = bench.Tensor(dtype, {2048}), at = bench.Tensor(DType::kI32, {n}),
                     freq = bench.Tensor(DType::kF32, {32}),
                     scores = bench.Tensor(DType::kF32, {n, 32}),
                     pooled = bench.Tensor(DType::kF32, {n, 32});
    const double bytes = 2 * size * n * 2048;
    const auto report = [&](const char* name, double moved, const std::function<void()>& call) {
      bench.Report(Name("%s %s", name, TypeName(dtype)), "GB/s", bench.Rate(moved, call), c.memory);
      bench.CheckStream();
    };
    report("rms norm", bytes, [&] { bench.backend().RmsNorm(x, w, 1e-5f, y, bench.stream()); });
    report("silu mul", bytes * 1.5, [&] { bench.backend().SiluMul(x, y, y, bench.stream()); });
    report("rope", bytes, [&] {
      bench.backend().Rope({.x = x.SplitHeads(64), .positions = at, .inv_freq = freq},
                           bench.stream());
    });
    report("copy", bytes, [&] { bench.backend().Copy(x, y, bench.stream()); });
    const TensorView query = bench.Tensor(dtype, {32, 32, 64});
    report("key scores", bytes / 2, [&] {
      bench.backend().KeyScores(
          {.k = x.SplitHeads(64), .query = query, .scale = 0.125f, .scores = scores},
          bench.stream());
    });
    report("max pool", 2.0 * 4 * n * 32,
           [&] { bench.backend().MaxPoolRows(scores, 7, pooled, bench.stream()); });
    const TensorView chosen = bench.Tensor(DType::kI32, {32, n / 8});
    report("top k", 4.0 * n * 32, [&] {
      bench.backend().TopKPerHead({.scores = scores,
                                   .eligible_begin = 0,
                                   .eligible_end = n,
                                   .count = n / 8,
                                   .indices = chosen},
                                  bench.stream());
    });
    const TensorView parts = bench.Tensor(DType::kF32, {4, n / 16, 32, 64}),
                     sums = bench.Tensor(DType::kF32, {4, n / 16, 32}),
                     merged = bench.Tensor(dtype, {n / 16, 32, 64});
    report("merge of 4 partials", (4 * 4 + size) * n / 16 * 2048.0,
           [&] { bench.backend().MergePartials(parts, sums, merged, {}, bench.stream()); });
    bench.Release();
  }
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Speed of the CPU kernels next to the ceilings of this machine");
  app.add_option("--threads", options.threads, "OpenMP threads; 0: all cores");
  app.add_option("--isa", options.isa,
                 "code path: amxbf16, avx512bf16, avx512vnni, avx512, avx2, portable");
  app.add_option("--repeats", options.repeats, "timed calls of each kernel; the best counts");
  app.add_option("--length", options.length, "longest prompt of prefill attention");
  app.add_option("--only", options.only,
                 "families to run: linear,skinny,prefill,paged,sample,other");
  app.add_option("--clock", options.clock,
                 "wall, or cpu: processor time / threads, steadier on a shared machine")
      ->check(CLI::IsMember({"wall", "cpu"}));
  app.add_option("--json", options.json_path, "write the table to this file too");
  CLI11_PARSE(app, argc, argv);
  if (options.threads <= 0) options.threads = omp_get_max_threads();
  Bench bench(options);
  std::printf("backend %s, %d threads, %s clock, best of %d\n",
              std::string(bench.backend().name()).c_str(), options.threads, options.clock.c_str(),
              options.repeats);
  const Ceilings ceilings = MeasureCeilings(bench, options.threads);
  if (bench.Wanted("linear")) LinearFamily(bench, ceilings);
  if (bench.Wanted("skinny")) SkinnyFamily(bench, ceilings);
  if (bench.Wanted("prefill")) PrefillFamily(bench, ceilings, options.length);
  if (bench.Wanted("paged")) PagedFamily(bench, ceilings);
  if (bench.Wanted("sample")) SampleFamily(bench);
  if (bench.Wanted("other")) OtherFamily(bench, ceilings);
  bench.WriteJson();
  return 0;
}

}  // namespace
}  // namespace apb::kernels

int main(int argc, char** argv) { return apb::kernels::Main(argc, argv); }
