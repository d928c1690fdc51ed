// The CPU backend. An operation runs the chosen instruction set's kernel, if there is one, or else
// the function for every CPU (operations_on_cpu.h).
#include <omp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/library_products.h"
#include "kernels/cpu/operations_on_cpu.h"

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
};

// AMX tiles need the Linux kernel's permission, once per process.
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

// The features that code paths need and that the CPU and the operating system let this process use.
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

// `asked`: a code path's name, or empty for the best one. Errors name it after `source`.
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
  Place place() const override { return Place::kCpu; }

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

  absl::StatusOr<std::unique_ptr<Graph>> Record(Stream&,
                                                absl::FunctionRef<absl::Status()>) override {
    return absl::UnimplementedError("the CPU does operations at once");
  }

 private:
  void Do(Operation operation, Stream& stream) override {
    std::visit([&](const auto* args) { Do(*args, stream); }, operation);
  }

  // Copy is the only operation that takes f16.
  void Do(const CopyArgs& args, Stream&) { OnCpu(args, threads_); }
  template <typename Args>
  void Do(const Args& args, Stream& stream) {
    if (args.main().dtype == DType::kF16) {
      return stream.Fail(absl::UnimplementedError(
          "the CPU backend does not compute in f16; convert the operands to bf16 or f32"));
    }
    Compute(args, stream);
  }

  template <typename Args>
  void Compute(const Args& args, Stream& stream) {
    if constexpr (requires { isa_.Of(&args); }) {
      RunKernel(isa_.Of(&args), args, stream);
    } else {
      OnCpu(args, threads_);
    }
  }
  template <typename Args>
  void RunKernel(SimdKernel<Args> kernel, const Args& args, Stream& stream) {
    if (kernel(args, threads_, scratch_)) return;
    stream.Fail(
        absl::ResourceExhaustedError(absl::StrCat(Args::kName, ": no memory for packed operands")));
  }

  void Compute(const EmbeddingArgs& args, Stream& stream) {
    for (int64_t t = 0; t < args.ids.shape[0]; ++t) {
      const int32_t id = args.ids.as<int32_t>()[t];
      if (id < 0 || id >= args.table.shape[0])
        return stream.Fail(ShapeError("Embedding id", args.table, args.ids));
    }
    OnCpu(args, threads_);
  }
  void Compute(const LinearArgs& args, Stream& stream) {
    if (args.x.shape[0] == 0 || isa_.linear(args, threads_, scratch_)) return;
    const bool library = isa_.library_products && !IsBlockType(args.weight.dtype);
    if (library && library_.Run(args, threads_)) return;
    RunKernel(isa_.packed_linear, args, stream);
  }
  void Compute(const RopeArgs& args, Stream& stream) {
    if (args.inv_freq.shape[0] > 0) RunKernel(isa_.rope, args, stream);
    if (!args.store.slots.present()) return;
    const int64_t rows = args.x.shape[0];
    AppendToCacheOnCpu(args.keys().Rows(args.store_begin, rows),
                       args.v.Rows(args.store_begin, rows), args.store.slots, args.store.k_cache,
                       args.store.v_cache, threads_);
  }
  void Compute(const AccumulateRmsNormArgs& args, Stream& stream) {
    Compute(AccumulateArgs{args.x, args.residual}, stream);
    Compute(RmsNormArgs{args.residual, args.weight, args.epsilon, args.out}, stream);
  }
  void Compute(const AttentionArgs& args, Stream& stream) {
    if (args.q.shape[0] > 0) RunKernel(isa_.Of(&args), args, stream);
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
