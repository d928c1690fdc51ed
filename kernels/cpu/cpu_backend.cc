// The CPU backend: checks of every operation's arguments, then the kernels of the chosen
// instruction set.
#include <omp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/select.h"

namespace apb::kernels {

Scratch::~Scratch() { std::free(data_); }

void* Scratch::Reserve(size_t bytes) {
  if (bytes > size_) {
    std::free(data_);
    size_ = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    data_ = std::aligned_alloc(4096, size_);
    if (data_ == nullptr) size_ = 0;
    if (data_ != nullptr && size_ > (2u << 20)) madvise(data_, size_, MADV_HUGEPAGE);
  }
  return data_;
}

namespace {

class CpuStream : public Stream {
 public:
  absl::Status Synchronize() override { return status_; }
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  bool failed() const { return !status_.ok(); }

 private:
  absl::Status status_;
};

// AMX tiles need the kernel's permission, once per process.
bool AmxAllowed() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed;
}

bool HasAvx512Bf16() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool HasAmx() {
  uint32_t a = 7, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  return HasAvx512Bf16() && (d & kAmxBf16) && (d & kAmxTile) && AmxAllowed();
}

absl::StatusOr<const IsaKernels*> ChooseKernels(std::string_view forced) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const std::pair<const IsaKernels*, bool> all[] = {
      {&kAmxKernels, (forced.empty() || forced == "amxbf16") && HasAmx()},
      {&kAvx512Kernels, HasAvx512Bf16()},
      {&kAvx2Kernels, avx2},
      {&kPortableKernels, true}};
  for (const auto& [kernels, usable] : all) {
    if (usable && (forced.empty() || forced == kernels->name)) return kernels;
  }
  return absl::InvalidArgumentError(absl::StrCat("CPU code path '", std::string(forced),
                                                 "' is unknown or not supported by this machine"));
}

std::string Shape(const TensorView& v) {
  return absl::StrCat("[", absl::StrJoin(v.shape.begin(), v.shape.begin() + v.rank, ", "), "]");
}

bool IsFloat(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16; }

class CpuBackend : public Backend {
 public:
  CpuBackend(const IsaKernels& isa, int threads)
      : isa_(isa), threads_(threads), name_(absl::StrCat("cpu/", isa.name)) {}

  std::string_view name() const override { return name_; }
  Place place() const override { return Place::kHost; }

  absl::StatusOr<Buffer> Allocate(size_t size_bytes) override {
    const size_t rounded = (std::max<size_t>(size_bytes, 1) + 4095) / 4096 * 4096;
    void* data = rounded < size_bytes ? nullptr : std::aligned_alloc(4096, rounded);
    if (data == nullptr)
      return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", size_bytes, " bytes"));
    if (rounded > (2u << 20)) madvise(data, rounded, MADV_HUGEPAGE);
    return Buffer(data, size_bytes, [](void* p) { std::free(p); });
  }
  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override {
    return std::make_unique<CpuStream>();
  }

  void Copy(const TensorView& source, const TensorView& target, Stream& stream) override {
    if (!Check(stream,
               source.rank == target.rank && source.shape == target.shape &&
                   source.dtype == target.dtype,
               "Copy", source, target)) {
      return;
    }
    CopyOnCpu(source, target, threads_);
  }

  void Embedding(const TensorView& table, const TensorView& ids, const TensorView& out,
                 Stream& stream) override {
    if (!Check(stream,
               table.rank == 2 && ids.dtype == DType::kI32 && out.rank == 2 &&
                   out.dtype == table.dtype && out.shape[0] == ids.shape[0] &&
                   out.shape[1] == table.shape[1],
               "Embedding", table, out)) {
      return;
    }
    for (int64_t t = 0; t < ids.shape[0]; ++t) {
      if (!Check(stream, ids.as<int32_t>()[t] >= 0 && ids.as<int32_t>()[t] < table.shape[0],
                 "Embedding id", table, ids))
        return;
    }
    EmbeddingOnCpu(table, ids, out, threads_);
  }

  void RmsNorm(const TensorView& x, const TensorView& weight, float epsilon, const TensorView& out,
               Stream& stream) override {
    if (!Check(stream,
               (x.rank == 2 || x.rank == 3) && IsFloat(x.dtype) && x.shape == out.shape &&
                   x.dtype == out.dtype && weight.dtype == x.dtype &&
                   weight.shape[0] == x.shape[x.rank - 1],
               "RmsNorm", x, weight)) {
      return;
    }
    isa_.rms_norm(x, weight, epsilon, out, threads_);
  }

  void Linear(const LinearArgs& a, Stream& stream) override {
    const bool ok =
        a.x.rank == 2 && a.weight.rank == 2 && a.out.rank == 2 && IsFloat(a.x.dtype) &&
        a.weight.dtype == a.x.dtype && (a.out.dtype == a.x.dtype || a.out.dtype == DType::kF32) &&
        a.x.shape[1] == a.weight.shape[1] && a.out.shape[0] == a.x.shape[0] &&
        a.out.shape[1] == a.weight.shape[0] &&
        (!a.bias.present() || (a.bias.shape[0] == a.weight.shape[0] && a.bias.dtype == a.x.dtype));
    if (!Check(stream, ok, "Linear", a.x, a.weight) || a.x.shape[0] == 0) return;
    if (isa_.linear(a, threads_, scratch_)) return;
    // oneDNN asks OpenMP for the number of threads; put the caller's setting back afterwards.
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads_);
    absl::Status status = linear_.Run(a);
    omp_set_num_threads(before);
    if (!status.ok()) Of(stream).Fail(std::move(status));
  }

  void Rope(const RopeArgs& a, Stream& stream) override {
    if (!Check(stream,
               a.x.rank == 3 && IsFloat(a.x.dtype) && a.positions.dtype == DType::kI32 &&
                   a.positions.shape[0] == a.x.shape[0] &&
                   2 * a.inv_freq.shape[0] <= a.x.shape[2] && a.inv_freq.shape[0] <= 128,
               "Rope", a.x, a.inv_freq)) {
      return;
    }
    isa_.rope(a, threads_);
  }

  void SiluMul(const TensorView& gate, const TensorView& up, const TensorView& out,
               Stream& stream) override {
    if (!Check(stream,
               gate.rank == 2 && IsFloat(out.dtype) && gate.shape == out.shape &&
                   (gate.dtype == out.dtype || gate.dtype == DType::kF32) &&
                   (!up.present() || (up.shape == gate.shape && up.dtype == gate.dtype)),
               "SiluMul", gate, out)) {
      return;
    }
    isa_.silu_mul(gate, up, out, threads_);
  }

  void Accumulate(const TensorView& x, const TensorView& out, Stream& stream) override {
    if (!Check(stream,
               x.rank == 2 && x.dtype == DType::kF32 && IsFloat(out.dtype) && x.shape == out.shape,
               "Accumulate", x, out)) {
      return;
    }
    isa_.accumulate(x, out, threads_);
  }

  void Attention(const AttentionArgs& a, Stream& stream) override {
    bool ok = a.q.rank == 3 && IsFloat(a.q.dtype) && a.out.shape == a.q.shape &&
              (a.out.dtype == a.q.dtype || a.out.dtype == DType::kF32) && a.q.shape[2] <= 256 &&
              a.q_positions.dtype == DType::kI32 && a.q_positions.shape[0] == a.q.shape[0] &&
              a.group_split >= 0 && a.group_split <= a.q.shape[0];
    int64_t kv_heads = 0;
    for (const KeySegment& s : a.keys) {
      if (s.k.shape[0] == 0) continue;
      if (kv_heads == 0) kv_heads = s.k.shape[1];
      const bool causal = s.visible_to_group[0] == Visibility::kCausal ||
                          s.visible_to_group[1] == Visibility::kCausal;
      ok = ok && s.k.rank == 3 && s.k.shape == s.v.shape && s.k.dtype == a.q.dtype &&
           s.v.dtype == a.q.dtype && s.k.shape[1] == kv_heads && s.k.shape[2] == a.q.shape[2] &&
           kv_heads > 0 && a.q.shape[1] % kv_heads == 0 && a.q.shape[1] / kv_heads <= 128 &&
           (!causal || (s.positions.present() && s.positions.shape[0] == s.k.shape[0]));
    }
    if (!Check(stream, ok, "Attention", a.q, a.keys.empty() ? a.q : a.keys[0].k) ||
        a.q.shape[0] == 0)
      return;
    if (!isa_.attention(a, threads_, scratch_)) NoMemory(stream, "Attention");
  }

  void PagedAttention(const PagedAttentionArgs& a, Stream& stream) override {
    bool ok = a.q.rank == 3 && IsFloat(a.q.dtype) && a.out.shape == a.q.shape &&
              a.k_cache.rank == 4 && a.k_cache.shape == a.v_cache.shape &&
              a.k_cache.dtype == a.q.dtype && a.v_cache.dtype == a.q.dtype &&
              (a.out.dtype == a.q.dtype || a.out.dtype == DType::kF32) &&
              a.k_cache.shape[3] == a.q.shape[2] && a.q.shape[2] <= 256 &&
              a.q.shape[1] % a.k_cache.shape[1] == 0 && a.q.shape[1] / a.k_cache.shape[1] <= 128;
    for (const PagedSequence& s : a.sequences) {
      ok = ok && s.row_begin >= 0 && s.row_begin + s.row_count <= a.q.shape[0] &&
           s.slot_count >= 0 && s.causal_begin >= 0;
    }
    if (!Check(stream, ok, "PagedAttention", a.q, a.k_cache)) return;
    if (!isa_.paged_attention(a, threads_, scratch_)) NoMemory(stream, "PagedAttention");
  }

  void MergePartials(const TensorView& outs, const TensorView& lses, const TensorView& out,
                     const TensorView& lse, Stream& stream) override {
    if (!Check(stream,
               outs.rank == 4 && lses.rank == 3 && out.rank == 3 && outs.dtype == DType::kF32 &&
                   lses.dtype == DType::kF32 && IsFloat(out.dtype) &&
                   out.shape[0] == outs.shape[1] && out.shape[1] == outs.shape[2] &&
                   out.shape[2] == outs.shape[3] && outs.shape[3] <= 256,
               "MergePartials", outs, out)) {
      return;
    }
    isa_.merge_partials(outs, lses, out, lse, threads_);
  }

  void AppendToCache(const TensorView& k, const TensorView& v, const TensorView& slots,
                     const TensorView& k_cache, const TensorView& v_cache,
                     Stream& stream) override {
    if (!CheckCache(stream, "AppendToCache", k, v, slots, k_cache, v_cache)) return;
    AppendToCacheOnCpu(k, v, slots, k_cache, v_cache, threads_);
  }
  void ReadFromCache(const TensorView& slots, const TensorView& k_cache, const TensorView& v_cache,
                     const TensorView& k, const TensorView& v, Stream& stream) override {
    if (!CheckCache(stream, "ReadFromCache", k, v, slots, k_cache, v_cache)) return;
    ReadFromCacheOnCpu(slots, k_cache, v_cache, k, v, threads_);
  }

  void MaxPoolRows(const TensorView& scores, int window, const TensorView& out,
                   Stream& stream) override {
    if (!Check(stream,
               scores.rank == 2 && scores.shape == out.shape && window > 0 && window % 2 == 1,
               "MaxPoolRows", scores, out)) {
      return;
    }
    MaxPoolRowsOnCpu(scores, window, out, threads_);
  }
  void KeyScores(const KeyScoreArgs& a, Stream& stream) override {
    if (!Check(stream,
               a.k.rank == 3 && a.query.rank == 3 && a.k.dtype == a.query.dtype &&
                   a.k.shape[2] <= 256 && a.query.shape[2] == a.k.shape[2] &&
                   a.query.shape[1] % a.k.shape[1] == 0 && a.scores.shape[0] == a.k.shape[0] &&
                   a.scores.shape[1] == a.k.shape[1],
               "KeyScores", a.k, a.query)) {
      return;
    }
    isa_.key_scores(a, threads_);
  }
  void TopKPerHead(const TopKPerHeadArgs& a, Stream& stream) override {
    if (!Check(stream,
               a.scores.rank == 2 && a.eligible_begin >= 0 && a.eligible_end <= a.scores.shape[0] &&
                   a.count >= 0 && a.count <= a.eligible_end - a.eligible_begin &&
                   a.indices.shape[0] == a.scores.shape[1] && a.indices.shape[1] == a.count,
               "TopKPerHead", a.scores, a.indices)) {
      return;
    }
    TopKPerHeadOnCpu(a, threads_);
  }
  void GatherRowsPerHead(const TensorView& x, const TensorView& indices, const TensorView& out,
                         Stream& stream) override {
    if (!Check(stream,
               x.rank == 3 && indices.rank == 2 && indices.dtype == DType::kI32 && out.rank == 3 &&
                   out.dtype == x.dtype && indices.shape[0] == x.shape[1] &&
                   out.shape[0] == indices.shape[1] && out.shape[1] == x.shape[1] &&
                   out.shape[2] == x.shape[2],
               "GatherRowsPerHead", x, out)) {
      return;
    }
    GatherRowsPerHeadOnCpu(x, indices, out, threads_);
  }

 private:
  static CpuStream& Of(Stream& stream) { return static_cast<CpuStream&>(stream); }
  static bool Check(Stream& stream, bool ok, const char* op, const TensorView& a,
                    const TensorView& b) {
    if (!ok) {
      Of(stream).Fail(absl::InternalError(
          absl::StrCat(op, ": shapes or types do not fit: ", Shape(a), " and ", Shape(b))));
    }
    return !Of(stream).failed();
  }
  static bool CheckCache(Stream& stream, const char* op, const TensorView& k, const TensorView& v,
                         const TensorView& slots, const TensorView& k_cache,
                         const TensorView& v_cache) {
    return Check(stream,
                 k.rank == 3 && k.shape == v.shape && slots.dtype == DType::kI64 &&
                     slots.shape[0] == k.shape[0] && k_cache.rank == 4 &&
                     k_cache.shape == v_cache.shape && k_cache.shape[1] == k.shape[1] &&
                     k_cache.shape[3] == k.shape[2] && k.dtype == k_cache.dtype,
                 op, k, k_cache);
  }
  static void NoMemory(Stream& stream, const char* op) {
    Of(stream).Fail(absl::ResourceExhaustedError(absl::StrCat(op, ": no memory for packed keys")));
  }

  const IsaKernels& isa_;
  const int threads_;
  const std::string name_;
  LinearCache linear_;
  Scratch scratch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options) {
  if (options.threads < 0 || options.threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads=", options.threads, ": must be between 0 and 1024"));
  }
  absl::StatusOr<const IsaKernels*> isa = ChooseKernels(options.force_isa);
  if (!isa.ok()) return isa.status();
  return std::make_unique<CpuBackend>(
      **isa, options.threads > 0 ? options.threads : omp_get_max_threads());
}

}  // namespace apb::kernels
