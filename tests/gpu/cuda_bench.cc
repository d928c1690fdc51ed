// Goal: the speed of the CUDA backend as a fraction of the GPU's ceilings. Method: measures the
// ceilings (device-to-device copies and a large matrix product) and the kernels in the same run.
// Prints a table and writes one JSON line for each number:
//   cuda_bench FILE.json [family...]
// Families: prefill segmented paged linear few_rows sample other.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_stream.h"

namespace apb::kernels {
namespace {

constexpr int kWarmUps = 2, kRepeats = 9;

class Bench {
 public:
  explicit Bench(const char* json_path)
      : backend_(*CreateCudaBackend(0)),
        stream_(*backend_->NewStream()),
        json_(std::fopen(json_path, "a")) {
    std::mt19937 rng(std::random_device{}());
    std::normal_distribution<float> normal;
    noise_.resize(1 << 20);
    for (float& x : noise_) x = normal(rng);
  }
  Backend& backend() { return *backend_; }
  Stream& stream() { return *stream_; }

  // A tensor of random numbers: with zeros, the GPU would run faster than with real data.
  TensorView Tensor(DType dtype, std::initializer_list<int64_t> shape) {
    TensorView view = TensorView::Contiguous(nullptr, dtype, shape);
    const size_t size = SizeOf(dtype), bytes = view.numel() * size;
    buffers_.push_back(*backend_->Allocate(bytes));
    view.data = buffers_.back().data();
    std::vector<std::byte> piece(noise_.size() * size);
    for (size_t i = 0; i < noise_.size(); ++i) {
      if (dtype == DType::kBF16) {
        uint32_t bits;
        std::memcpy(&bits, &noise_[i], 4);
        const uint16_t high = static_cast<uint16_t>(bits >> 16);
        std::memcpy(&piece[i * 2], &high, 2);
      } else {
        std::memcpy(&piece[i * size], &noise_[i], std::min<size_t>(size, 4));
      }
    }
    for (size_t at = 0; at < bytes; at += piece.size()) {
      Upload(piece.data(), static_cast<std::byte*>(view.data) + at,
             std::min(piece.size(), bytes - at));
    }
    return view;
  }
  // A device copy of `values`, numbers of four bytes.
  template <typename T>
  TensorView Copied(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    buffers_.push_back(*backend_->Allocate(bytes));
    Upload(values.data(), buffers_.back().data(), bytes);
    return TensorView::Contiguous(buffers_.back().data(), DType::kI32,
                                  {static_cast<int64_t>(bytes / 4)});
  }
  TensorView Integers(const std::vector<int32_t>& values) { return Copied(values); }
  TensorView Positions(int64_t begin, int64_t count) {
    std::vector<int32_t> values(count);
    std::iota(values.begin(), values.end(), static_cast<int32_t>(begin));
    return Integers(values);
  }
  void Release() { buffers_.clear(); }

  // Median seconds of a call, measured by events.
  double Seconds(const std::function<void()>& call) {
    const cudaStream_t handle = static_cast<cuda::CudaStream&>(*stream_).handle();
    std::vector<float> times;
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    for (int i = 0; i < kWarmUps + kRepeats; ++i) {
      cudaEventRecord(begin, handle);
      call();
      cudaEventRecord(end, handle);
      cudaEventSynchronize(end);
      float milliseconds = 0;
      cudaEventElapsedTime(&milliseconds, begin, end);
      if (i >= kWarmUps) times.push_back(milliseconds);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    const absl::Status status = stream_->Synchronize();
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      std::exit(1);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2] / 1e3;
  }
  // `ceiling` is in the same unit; 0 if there is none.
  void Report(const std::string& name, const char* unit, double value, double ceiling) {
    std::printf("%-64s %9.1f %-8s", name.c_str(), value, unit);
    if (ceiling > 0) std::printf(" %5.1f %%", 100 * value / ceiling);
    std::printf("\n");
    std::fflush(stdout);
    std::fprintf(json_,
                 "{\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"ceiling\": %.6g}\n",
                 name.c_str(), value, unit, ceiling);
    std::fflush(json_);
  }

 private:
  void Upload(const void* from, void* to, size_t bytes) {
    cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice);
  }
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  std::FILE* json_;
  std::vector<float> noise_;
  std::vector<Buffer> buffers_;
};

std::string Name(const char* format, auto... values) {
  char text[128];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

struct Ceilings {
  double copy = 0, product = 0;  // GB/s (read plus written), TFLOP/s
};

Ceilings MeasureCeilings(Bench& bench) {
  Ceilings c;
  const int64_t elements = int64_t{1} << 31;
  const TensorView from = bench.Tensor(DType::kBF16, {elements}),
                   to = bench.Tensor(DType::kBF16, {elements});
  c.copy =
      4.0 * elements / bench.Seconds([&] { bench.backend().Copy(from, to, bench.stream()); }) / 1e9;
  bench.Release();
  const int64_t n = 8192;
  const TensorView x = bench.Tensor(DType::kBF16, {n, n}), w = bench.Tensor(DType::kBF16, {n, n}),
                   y = bench.Tensor(DType::kBF16, {n, n});
  c.product = 2.0 * n * n * n / bench.Seconds([&] {
    bench.backend().Linear({.x = x, .weight = w, .bias = {}, .out = y}, bench.stream());
  }) / 1e12;
  bench.Release();
  bench.Report("ceiling: device to device copy, read + written", "GB/s", c.copy, 0);
  bench.Report("ceiling: matrix product 8192^3 bf16", "TFLOP/s", c.product, 0);
  return c;
}

constexpr int64_t kHeads = 32, kKvHeads = 8;

struct Keys {
  TensorView k, v;
};
Keys MakeKeys(Bench& bench, int64_t count, int64_t d) {
  return {bench.Tensor(DType::kBF16, {count, kKvHeads, d}),
          bench.Tensor(DType::kBF16, {count, kKvHeads, d})};
}

// Attention of rows at the positions `at`, with `pairs` visible query-key pairs per head.
void AttentionCase(Bench& bench, const Ceilings& c, const std::string& name, int64_t d,
                   const TensorView& at, const std::vector<KeySegment>& keys, double pairs) {
  const TensorView q = bench.Tensor(DType::kBF16, {at.shape[0], kHeads, d}),
                   out = bench.Tensor(DType::kBF16, {at.shape[0], kHeads, d});
  const double seconds = bench.Seconds([&] {
    bench.backend().Attention({.q = q,
                               .q_positions = at,
                               .keys = keys,
                               .scale = 1 / std::sqrt(static_cast<float>(d)),
                               .out = out},
                              bench.stream());
  });
  bench.Report(name, "TFLOP/s", 4.0 * kHeads * d * pairs / seconds / 1e12, c.product);
  bench.Release();
}

void PrefillFamily(Bench& bench, const Ceilings& c) {
  for (const int64_t d : {int64_t{64}, int64_t{96}, int64_t{128}}) {
    for (int64_t n = 4096; n <= (d == 96 ? 32768 : 131072); n *= 2) {
      const Keys keys = MakeKeys(bench, n, d);
      const TensorView at = bench.Positions(0, n);
      AttentionCase(bench, c, Name("prefill causal, d %ld, %ld", d, n), d, at,
                    {{keys.k, keys.v, at, {Visibility::kCausal, Visibility::kCausal}}},
                    0.5 * n * (n + 1));
    }
  }
}

// The keys of the last of eight hosts: anchor, seven passing blocks, its own shard.
void SegmentedFamily(Bench& bench, const Ceilings& c) {
  constexpr int64_t kHosts = 8;
  for (const int64_t d : {int64_t{64}, int64_t{128}}) {
    for (int64_t n = 32768; n <= 524288; n *= 2) {
      const int64_t block = n / kHosts, anchor = std::min<int64_t>(block / 4, 8192),
                    passing = std::min<int64_t>(block / 8, 8192);
      std::vector<KeySegment> segments;
      const std::array<Visibility, 2> all{Visibility::kAll, Visibility::kAll};
      for (int64_t h = 0; h + 1 < kHosts; ++h) {
        const Keys keys = MakeKeys(bench, passing, d);
        segments.push_back({.k = keys.k, .v = keys.v, .visible_to_group = all});
      }
      const Keys first = MakeKeys(bench, anchor, d), local = MakeKeys(bench, block, d);
      segments.push_back({.k = first.k, .v = first.v, .visible_to_group = all});
      const TensorView at = bench.Positions(n - block, block);
      segments.push_back({.k = local.k, .v = local.v, .positions = at});
      const double pairs = static_cast<double>(block) * ((kHosts - 1) * passing + anchor) +
                           0.5 * block * (block + 1);
      AttentionCase(bench, c, Name("APB host 8 of 8, d %ld, %ld tokens", d, n), d, at, segments,
                    pairs);
    }
  }
}

void PagedCase(Bench& bench, const Ceilings& c, int64_t d, int64_t sequences, int64_t rows,
               int64_t slots) {
  constexpr int64_t kBlock = 32;
  const int64_t blocks = slots / kBlock * sequences;
  const int64_t bytes = 2 * blocks * kKvHeads * kBlock * d * 2;
  // Several layers, so that the caches are larger than the L2.
  const int64_t layers = std::max<int64_t>(1, (int64_t{2} << 30) / bytes);
  const TensorView k = bench.Tensor(DType::kBF16, {layers * blocks, kKvHeads, kBlock, d}),
                   v = bench.Tensor(DType::kBF16, {layers * blocks, kKvHeads, kBlock, d}),
                   q = bench.Tensor(DType::kBF16, {sequences * rows, kHeads, d}),
                   out = bench.Tensor(DType::kBF16, {sequences * rows, kHeads, d}),
                   at = bench.Positions(0, slots), q_at = bench.Positions(slots, sequences * rows);
  std::vector<int32_t> table(blocks);
  for (int64_t i = 0; i < blocks; ++i) table[i] = static_cast<int32_t>(i * 7919 % blocks);
  const TensorView tables = bench.Integers(table);
  std::vector<PagedRows> spans(sequences);
  std::vector<PagedSequence> all(sequences);
  for (int64_t i = 0; i < sequences; ++i) {
    spans[i] = {.begin = i * rows, .count = rows};
    all[i] = {.block_table = tables.as<int32_t>() + i * (slots / kBlock),
              .slot_positions = at.as<int32_t>() + slots - 64,
              .slot_count = slots,
              .causal_begin = slots - 64};
  }
  const int64_t words = sequences * static_cast<int64_t>(sizeof(PagedSequence) / sizeof(int64_t));
  const TensorView placed = bench.Tensor(DType::kI64, {words});
  bench.backend().Copy(TensorView::Contiguous(all.data(), DType::kI64, {words}), placed,
                       bench.stream());
  const double seconds = bench.Seconds([&] {
    for (int64_t l = 0; l < layers; ++l) {
      bench.backend().PagedAttention({.q = q,
                                      .q_positions = q_at,
                                      .k_cache = k.Rows(l * blocks, (l + 1) * blocks),
                                      .v_cache = v.Rows(l * blocks, (l + 1) * blocks),
                                      .rows = spans,
                                      .sequences = placed.as<PagedSequence>(),
                                      .total_slots = sequences * slots,
                                      .scale = 1 / std::sqrt(static_cast<float>(d)),
                                      .out = out},
                                     bench.stream());
    }
  }) / static_cast<double>(layers);
  const std::string name =
      Name("paged, d %ld, %ld sequences x %ld rows x %ld slots", d, sequences, rows, slots);
  if (rows * kHeads / kKvHeads <= 16) {
    bench.Report(name, "GB/s", static_cast<double>(bytes) / seconds / 1e9, c.copy);
  } else {
    bench.Report(name, "TFLOP/s",
                 4.0 * static_cast<double>(sequences * rows * slots * kHeads * d) / seconds / 1e12,
                 c.product);
  }
  bench.Release();
}

void PagedFamily(Bench& bench, const Ceilings& c) {
  for (const int64_t d : {int64_t{64}, int64_t{128}}) {
    PagedCase(bench, c, d, 1, 1, 65536);
    PagedCase(bench, c, d, 1, 1, 8192);
    PagedCase(bench, c, d, 16, 1, 8192);
    PagedCase(bench, c, d, 64, 1, 4096);
    PagedCase(bench, c, d, 1, 4, 65536);
    PagedCase(bench, c, d, 1, 64, 65536);
    PagedCase(bench, c, d, 1, 512, 65536);
  }
}

// The matrix products of a layer of Llama 3.1 8B.
void LinearFamily(Bench& bench, const Ceilings& c) {
  struct Shape {
    const char* name;
    int64_t in, out;
  };
  for (const Shape s :
       {Shape{"q", 4096, 4096}, {"k", 4096, 1024}, {"gate", 4096, 14336}, {"down", 14336, 4096}}) {
    for (const int64_t rows : {int64_t{1}, int64_t{16}, int64_t{1024}, int64_t{8192}}) {
      const TensorView x = bench.Tensor(DType::kBF16, {rows, s.in}),
                       w = bench.Tensor(DType::kBF16, {s.out, s.in}),
                       y = bench.Tensor(DType::kBF16, {rows, s.out});
      const double seconds = bench.Seconds([&] {
        bench.backend().Linear({.x = x, .weight = w, .bias = {}, .out = y}, bench.stream());
      });
      bench.Report(Name("linear %s, %ld x %ld -> %ld", s.name, rows, s.in, s.out), "TFLOP/s",
                   2.0 * static_cast<double>(rows * s.in * s.out) / seconds / 1e12, c.product);
      bench.Release();
    }
  }
}

// The same products for the few rows of decode and of a short question. Reading the weights bounds
// them, so each product reads its weights from memory, not from the L2. cuBLASLt may split the sums
// of a float32 output (split-K), but not those of a bf16 one; measuring both shows the difference.
void FewRowsFamily(Bench& bench, const Ceilings& c) {
  struct Shape {
    const char* name;
    int64_t in, out;
  };
  for (const Shape s : {Shape{"qkv", 4096, 6144},
                        {"o", 4096, 4096},
                        {"gate_up", 4096, 28672},
                        {"down", 14336, 4096}}) {
    const double bytes = 2.0 * static_cast<double>(s.in * s.out);
    const int64_t copies = (int64_t{1} << 29) / (2 * s.in * s.out) + 1;
    const TensorView w = bench.Tensor(DType::kBF16, {copies * s.out, s.in}),
                     x = bench.Tensor(DType::kBF16, {64, s.in}),
                     narrow = bench.Tensor(DType::kBF16, {64, s.out}),
                     wide = bench.Tensor(DType::kF32, {64, s.out});
    for (const int64_t rows : {1, 2, 4, 8, 16, 32, 64}) {
      for (const TensorView& out : {narrow, wide}) {
        const double seconds = bench.Seconds([&] {
          for (int64_t i = 0; i < copies; ++i) {
            bench.backend().Linear({.x = x.Rows(0, rows),
                                    .weight = w.Rows(i * s.out, (i + 1) * s.out),
                                    .bias = {},
                                    .out = out.Rows(0, rows)},
                                   bench.stream());
          }
        }) / static_cast<double>(copies);
        bench.Report(Name("few rows %s, %ld x %ld -> %ld %s", s.name, rows, s.in, s.out,
                          out.dtype == DType::kF32 ? "f32" : "bf16"),
                     "GB/s", bytes / seconds / 1e9, c.copy);
      }
    }
    bench.Release();
  }
}

// GB/s of the logits, counted as if they were read once: shows the loss by several passes and by
// few thread blocks.
void SampleFamily(Bench& bench, const Ceilings& c) {
  struct Case {
    const char* name;
    SampleRow row;
  };
  const int64_t vocab = 128256;
  for (const Case& kind : {Case{"greedy", {.temperature = 0}},
                           {"temperature 0.8", {.uniform = 0.5, .temperature = 0.8f}},
                           {"top_p 0.95", {.uniform = 0.5, .temperature = 0.8f, .top_p = 0.95f}},
                           {"top_k 50", {.uniform = 0.5, .temperature = 0.8f, .top_k = 50}}}) {
    for (const int64_t rows : {int64_t{1}, int64_t{16}, int64_t{64}, int64_t{256}}) {
      const TensorView logits = bench.Tensor(DType::kF32, {rows, vocab}),
                       tokens = bench.Tensor(DType::kI32, {rows});
      const TensorView arguments = bench.Copied(std::vector<SampleRow>(rows, kind.row));
      const double seconds = bench.Seconds([&] {
        bench.backend().Sample(
            {.logits = logits, .rows = arguments.as<const SampleRow>(), .tokens = tokens},
            bench.stream());
      });
      const std::string name = Name("sample %s, %ld x %ld", kind.name, rows, vocab);
      bench.Report(name + ", time", "us", seconds * 1e6, 0);
      bench.Report(name, "GB/s", 4.0 * rows * vocab / seconds / 1e9, c.copy);
      bench.Release();
    }
  }
}

void OtherFamily(Bench& bench, const Ceilings& c) {
  const int64_t n = 32768, width = 4096, kv = kKvHeads * 128;
  Backend& backend = bench.backend();
  Stream& stream = bench.stream();
  const TensorView x = bench.Tensor(DType::kBF16, {n, width}),
                   y = bench.Tensor(DType::kBF16, {n, width}),
                   w = bench.Tensor(DType::kBF16, {width}), at = bench.Positions(0, n),
                   freq = bench.Tensor(DType::kF32, {64}),
                   scores = bench.Tensor(DType::kF32, {n, kKvHeads}),
                   pooled = bench.Tensor(DType::kF32, {n, kKvHeads}),
                   keys = bench.Tensor(DType::kBF16, {n, kv}),
                   query = bench.Tensor(DType::kBF16, {32, kHeads, 128}),
                   chosen = bench.Integers(std::vector<int32_t>(kKvHeads * (n / 8)));
  const double bytes = 2.0 * 2 * n * width;
  const auto report = [&](const char* name, double moved, const std::function<void()>& call) {
    bench.Report(Name("%s, %ld rows", name, n), "GB/s", moved / bench.Seconds(call) / 1e9, c.copy);
  };
  report("rms norm", bytes, [&] { backend.RmsNorm(x, w, 1e-5f, y, stream); });
  report("silu mul", bytes * 1.5, [&] { backend.SiluMul(x, y, y, stream); });
  report("rope", bytes, [&] {
    backend.Rope({.x = x.SplitHeads(128), .positions = at, .inv_freq = freq}, stream);
  });
  report("key scores", 2.0 * n * kv, [&] {
    backend.KeyScores({.k = keys.SplitHeads(128), .query = query, .scale = 0.1f, .scores = scores},
                      stream);
  });
  report("max pool", 8.0 * n * kKvHeads, [&] { backend.MaxPoolRows(scores, 5, pooled, stream); });
  TensorView indices = chosen;
  indices.rank = 2;
  indices.shape = {kKvHeads, n / 8, 0, 0};
  indices.stride = {n / 8, 1, 0, 0};
  report("top k of an eighth", 4.0 * n * kKvHeads, [&] {
    backend.TopKPerHead({.scores = pooled,
                         .eligible_begin = 0,
                         .eligible_end = n,
                         .count = n / 8,
                         .indices = indices},
                        stream);
  });
  report("gather of an eighth", 4.0 * n / 8 * kv, [&] {
    backend.Run(GatherRowsPerHeadArgs{keys.SplitHeads(128), indices,
                                      y.Rows(0, n / 8).Columns(0, kv).SplitHeads(128)},
                stream);
  });
  bench.Release();
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: cuda_bench FILE.json [family...]\n");
    return 2;
  }
  const absl::StatusOr<int> devices = UsableCudaDevices();
  if (!devices.ok()) {
    std::fprintf(stderr, "%s\n", devices.status().ToString().c_str());
    return 1;
  }
  Bench bench(argv[1]);
  std::printf("%s\n", std::string(bench.backend().name()).c_str());
  const auto wanted = [&](const char* family) {
    return argc == 2 || std::any_of(argv + 2, argv + argc,
                                    [&](const char* a) { return a == std::string(family); });
  };
  const Ceilings ceilings = MeasureCeilings(bench);
  if (wanted("prefill")) PrefillFamily(bench, ceilings);
  if (wanted("segmented")) SegmentedFamily(bench, ceilings);
  if (wanted("paged")) PagedFamily(bench, ceilings);
  if (wanted("linear")) LinearFamily(bench, ceilings);
  if (wanted("few_rows")) FewRowsFamily(bench, ceilings);
  if (wanted("sample")) SampleFamily(bench, ceilings);
  if (wanted("other")) OtherFamily(bench, ceilings);
  return 0;
}

}  // namespace
}  // namespace apb::kernels

int main(int argc, char** argv) { return apb::kernels::Main(argc, argv); }
