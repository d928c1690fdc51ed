// The CPU backend: checks of every operation's arguments, then the kernels of the chosen
// instruction set.
#include <omp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/argument_checks.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/library_products.h"
#include "kernels/cpu/sample.h"
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
  // Whether an operation may run: its check is OK, and none before it has failed.
  bool Accepts(absl::Status check) {
    if (!check.ok()) Fail(std::move(check));
    return status_.ok();
  }

 private:
  absl::Status status_;
};

// AMX tiles need the kernel's permission, once per process.
bool AmxAllowed() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed;
}

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool HasAvx512Vnni() { return HasAvx512() && __builtin_cpu_supports("avx512vnni"); }
bool HasAvx512Bf16() { return HasAvx512Vnni() && __builtin_cpu_supports("avx512bf16"); }
bool HasAmx() {
  uint32_t a = 7, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  return HasAvx512Bf16() && (d & kAmxBf16) && (d & kAmxTile) && AmxAllowed();
}

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

struct CodePath {
  std::string_view name;
  const IsaKernels* kernels;
  bool (*usable)();
};

// Best first.
constexpr CodePath kCodePaths[] = {{"amxbf16", &isa_amxbf16::kKernels, HasAmx},
                                   {"avx512bf16", &isa_avx512bf16::kKernels, HasAvx512Bf16},
                                   {"avx512vnni", &isa_avx512vnni::kKernels, HasAvx512Vnni},
                                   {"avx512", &isa_avx512::kKernels, HasAvx512},
                                   {"avx2", &isa_avx2::kKernels, HasAvx2},
                                   {"portable", &isa_portable::kKernels, [] { return true; }}};

// Of those that code paths need, the ones that CPU and operating system let this process use.
std::string CpuFeatures() {
  const std::pair<const char*, bool> features[] = {
      {"avx2", __builtin_cpu_supports("avx2")},
      {"fma", __builtin_cpu_supports("fma")},
      {"f16c", __builtin_cpu_supports("f16c")},
      {"avx512f", __builtin_cpu_supports("avx512f")},
      {"avx512bw", __builtin_cpu_supports("avx512bw")},
      {"avx512vl", __builtin_cpu_supports("avx512vl")},
      {"avx512dq", __builtin_cpu_supports("avx512dq")},
      {"avx512vnni", __builtin_cpu_supports("avx512vnni")},
      {"avx512bf16", __builtin_cpu_supports("avx512bf16")},
      {"amx_bf16", HasAmx()}};
  std::string names;
  for (const auto& [name, there] : features) {
    if (there) absl::StrAppend(&names, names.empty() ? "" : " ", name);
  }
  return names.empty() ? "none of avx2, avx512, amx" : names;
}

// `asked`: a name, or empty for the best. `source` is what stands before the name in an error.
absl::StatusOr<CodePath> ChooseCodePath(std::string_view asked, std::string_view source) {
  std::string usable;
  bool known = false;
  for (const CodePath& path : kCodePaths) {
    if ((asked.empty() || asked == path.name) && path.usable()) return path;
    known |= asked == path.name;
  }
  for (const CodePath& path : kCodePaths) {
    if (path.usable()) absl::StrAppend(&usable, usable.empty() ? "" : ", ", std::string(path.name));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(source), std::string(asked),
      known ? ": this CPU cannot run it" : ": there is no such code path", "; it runs ", usable,
      " (features: ", CpuFeatures(), "). Ask for one of them, or for none"));
}

class CpuBackend : public Backend {
 public:
  CpuBackend(const CodePath& path, int threads)
      : isa_(*path.kernels),
        threads_(threads),
        name_(absl::StrCat("cpu/", std::string(path.name))) {}

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
  absl::StatusOr<Buffer> AllocateHost(size_t size_bytes) override { return Allocate(size_bytes); }
  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override {
    return std::make_unique<CpuStream>();
  }

  void Copy(const TensorView& source, const TensorView& target, Stream& stream) override {
    if (!Of(stream).Accepts(CheckCopy(source, target))) return;  // of any type
    CopyOnCpu(source, target, threads_);
  }

  void Embedding(const TensorView& table, const TensorView& ids, const TensorView& out,
                 Stream& stream) override {
    if (!Passes(CheckEmbedding(table, ids, out), table, stream)) return;
    for (int64_t t = 0; t < ids.shape[0]; ++t) {
      if (ids.as<int32_t>()[t] >= 0 && ids.as<int32_t>()[t] < table.shape[0]) continue;
      Of(stream).Fail(ShapeError("Embedding id", table, ids));
      return;
    }
    EmbeddingOnCpu(table, ids, out, threads_);
  }

  void RmsNorm(const TensorView& x, const TensorView& weight, float epsilon, const TensorView& out,
               Stream& stream) override {
    if (!Passes(CheckRmsNorm(x, weight, out), x, stream)) return;
    isa_.rms_norm(x, weight, epsilon, out, threads_);
  }

  void Linear(const LinearArgs& a, Stream& stream) override {
    if (!Passes(CheckLinear(a), a.x, stream) || a.x.shape[0] == 0) return;
    if (isa_.linear(a, threads_, scratch_)) return;
    const bool library = isa_.library_products && !IsBlockType(a.weight.dtype);
    if (library && library_.Run(a, threads_)) return;
    if (!isa_.packed_linear(a, threads_, scratch_)) NoMemory(stream, "Linear");
  }

  void Rope(const RopeArgs& a, Stream& stream) override {
    if (!Passes(CheckRope(a), a.x, stream)) return;
    if (a.inv_freq.shape[0] > 0) isa_.rope(a, threads_);
    if (!a.store.slots.present()) return;
    const int64_t rows = a.x.shape[0];
    AppendToCacheOnCpu(a.keys().Rows(a.store_begin, rows), a.v.Rows(a.store_begin, rows),
                       a.store.slots, a.store.k_cache, a.store.v_cache, threads_);
  }

  void SiluMul(const TensorView& gate, const TensorView& up, const TensorView& out,
               Stream& stream) override {
    if (!Passes(CheckSiluMul(gate, up, out), out, stream)) return;
    isa_.silu_mul(gate, up, out, threads_);
  }

  void Accumulate(const TensorView& x, const TensorView& out, Stream& stream) override {
    if (!Passes(CheckAccumulate(x, out), out, stream)) return;
    isa_.accumulate(x, out, threads_);
  }
  void AccumulateRmsNorm(const TensorView& x, const TensorView& residual, const TensorView& weight,
                         float epsilon, const TensorView& out, Stream& stream) override {
    if (!Passes(CheckAccumulate(x, residual), residual, stream)) return;
    if (!Passes(CheckRmsNorm(residual, weight, out), out, stream)) return;
    isa_.accumulate(x, residual, threads_);
    isa_.rms_norm(residual, weight, epsilon, out, threads_);
  }

  void Attention(const AttentionArgs& a, Stream& stream) override {
    if (!Passes(CheckAttention(a), a.q, stream) || a.q.shape[0] == 0) return;
    if (!isa_.attention(a, threads_, scratch_)) NoMemory(stream, "Attention");
  }

  void PagedAttention(const PagedAttentionArgs& a, Stream& stream) override {
    if (!Passes(CheckPagedAttention(a), a.q, stream)) return;
    if (!isa_.paged_attention(a, threads_, scratch_)) NoMemory(stream, "PagedAttention");
  }

  void MergePartials(const TensorView& outs, const TensorView& lses, const TensorView& out,
                     const TensorView& lse, Stream& stream) override {
    if (!Passes(CheckMergePartials(outs, lses, out), out, stream)) return;
    isa_.merge_partials(outs, lses, out, lse, threads_);
  }

  void ReadFromCache(const TensorView& slots, const TensorView& k_cache, const TensorView& v_cache,
                     const TensorView& k, const TensorView& v, Stream& stream) override {
    if (!Passes(CheckReadFromCache(k, v, slots, k_cache, v_cache), k, stream)) return;
    ReadFromCacheOnCpu(slots, k_cache, v_cache, k, v, threads_);
  }

  void MaxPoolRows(const TensorView& scores, int window, const TensorView& out,
                   Stream& stream) override {
    if (!Passes(CheckMaxPoolRows(scores, window, out), out, stream)) return;
    MaxPoolRowsOnCpu(scores, window, out, threads_);
  }
  void KeyScores(const KeyScoreArgs& a, Stream& stream) override {
    if (!Passes(CheckKeyScores(a), a.k, stream)) return;
    isa_.key_scores(a, threads_);
  }
  void TopKPerHead(const TopKPerHeadArgs& a, Stream& stream) override {
    if (!Passes(CheckTopKPerHead(a), a.scores, stream)) return;
    TopKPerHeadOnCpu(a, threads_);
  }
  void GatherRowsPerHead(const TensorView& x, const TensorView& indices, const TensorView& out,
                         Stream& stream) override {
    if (!Passes(CheckGatherRowsPerHead(x, indices, out), x, stream)) return;
    GatherRowsPerHeadOnCpu(x, indices, out, threads_);
  }
  absl::StatusOr<std::unique_ptr<Graph>> Record(Stream&,
                                                absl::FunctionRef<absl::Status()>) override {
    return absl::UnimplementedError("the CPU does operations at once");
  }

  void Sample(const SampleArgs& a, Stream& stream) override {
    if (!Passes(CheckSample(a), a.logits, stream)) return;
    SampleOnCpu(a, threads_);
  }

 private:
  static CpuStream& Of(Stream& stream) { return static_cast<CpuStream&>(stream); }
  // Whether an operation may run whose operands, if they fit, have the type of `operand` or f32.
  static bool Passes(absl::Status check, const TensorView& operand, Stream& stream) {
    if (check.ok() && operand.dtype == DType::kF16) {
      check = absl::UnimplementedError(
          "the CPU backend does not compute in f16; convert the operands to bf16 or f32");
    }
    return Of(stream).Accepts(std::move(check));
  }
  static void NoMemory(Stream& stream, const char* op) {
    Of(stream).Fail(
        absl::ResourceExhaustedError(absl::StrCat(op, ": no memory for packed operands")));
  }

  const IsaKernels& isa_;
  const int threads_;
  const std::string name_;
  LibraryProducts library_;
  Scratch scratch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options) {
  if (options.threads < 0 || options.threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads=", options.threads, ": must be between 0 and 1024"));
  }
  const char* variable = std::getenv("APB_CPU_ISA");
  absl::StatusOr<CodePath> path = options.force_isa.empty() && variable != nullptr
                                      ? ChooseCodePath(variable, "APB_CPU_ISA=")
                                      : ChooseCodePath(options.force_isa, "CPU code path ");
  if (!path.ok()) return path.status();
  return std::make_unique<CpuBackend>(
      *path, options.threads > 0 ? options.threads : omp_get_max_threads());
}

}  // namespace apb::kernels
