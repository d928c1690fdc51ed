// Matrix products by cuBLASLt, which is column-major: a row-major out[T, out] is its out^T[out, T].
// So it computes out^T = weight x^T, with weight as the transpose of a column-major [in, out]
// matrix.
#include "kernels/cuda/linear.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/operations.h"

namespace apb::kernels::cuda {
namespace {

constexpr size_t kWorkspaceBytes = 32 << 20;  // NVIDIA's advice for Hopper
constexpr size_t kMaxKept = 4096;
// The most rows and outputs of a product whose sums are split and rounded separately.
constexpr int64_t kSplitRows = 64, kSplitOutputs = 8192;
constexpr size_t kSplitBytes = kSplitRows * kSplitOutputs * sizeof(float);

absl::Status LtStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("Linear: ", what, ": ", cublasLtGetStatusString(status)));
}

cudaDataType_t TypeOf(DType dtype) {
  return dtype == DType::kBF16 ? CUDA_R_16BF : dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_32F;
}

// The largest power of two up to 256 that divides the address.
uint32_t AlignmentOf(const TensorView& view) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(view.data) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

struct Layout {
  cublasLtMatrixLayout_t handle = nullptr;
  ~Layout() {
    if (handle != nullptr) cublasLtMatrixLayoutDestroy(handle);
  }
  // A matrix whose columns are the rows of `view`.
  absl::Status Set(const TensorView& view) {
    return LtStatus(cublasLtMatrixLayoutCreate(&handle, TypeOf(view.dtype), view.shape[1],
                                               view.shape[0], view.stride[0]),
                    "layout");
  }
};

struct Product {
  cublasLtMatmulDesc_t handle = nullptr;
  ~Product() {
    if (handle != nullptr) cublasLtMatmulDescDestroy(handle);
  }
  template <typename T>
  absl::Status Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    return LtStatus(cublasLtMatmulDescSetAttribute(handle, attribute, &value, sizeof value),
                    "attribute");
  }
};

struct Preference {
  cublasLtMatmulPreference_t handle = nullptr;
  ~Preference() {
    if (handle != nullptr) cublasLtMatmulPreferenceDestroy(handle);
  }
  template <typename T>
  absl::Status Set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    return LtStatus(cublasLtMatmulPreferenceSetAttribute(handle, attribute, &value, sizeof value),
                    "preference");
  }
};

// Everything that the choice of an algorithm depends on.
using ShapeKey = std::array<int64_t, 13>;

}  // namespace

struct CudaLinear::Impl {
  cublasLtHandle_t handle = nullptr;
  std::map<ShapeKey, cublasLtMatmulAlgo_t> algorithms;

  ~Impl() {
    if (handle != nullptr) cublasLtDestroy(handle);
  }

  absl::Status Run(const LinearArgs& a, CudaStream& stream) {
    // Always the same size, so that the memory does not move under recorded steps.
    void* workspace = stream.Scratch(kWorkspaceBytes + kSplitBytes);
    if (workspace == nullptr) return absl::OkStatus();  // the stream has failed
    if (!GainsBySplits(a)) return RunOne(a, workspace, stream);
    LinearArgs sums = a;
    sums.accumulate = false;
    sums.out = TensorView::Contiguous(static_cast<std::byte*>(workspace) + kWorkspaceBytes,
                                      DType::kF32, {a.out.shape[0], a.out.shape[1]});
    const absl::Status status = RunOne(sums, workspace, stream);
    if (status.ok())
      stream.Check(Enqueue(AccumulateArgs{sums.out, a.out}, stream.handle()), "Linear: sums");
    return status;
  }

  // A product of few rows, few outputs and long sums fills the device only if the sums are split.
  // Sums with a half precision output must not be split (Choose), so they are computed in float and
  // rounded once. (H200, 1 row, 14336 -> 4096: 365 GB/s of weights without splits, 3,081 with
  // them.)
  static bool GainsBySplits(const LinearArgs& a) {
    return a.accumulate && !a.bias.present() && a.out.dtype != DType::kF32 &&
           a.out.shape[0] <= kSplitRows && a.out.shape[1] <= kSplitOutputs && a.x.shape[1] >= 1024;
  }

  absl::Status RunOne(const LinearArgs& a, void* workspace, CudaStream& stream) {
    // The bias has the type of x, and the epilogue needs that of the output. No preference tells
    // cuBLASLt the alignment of the bias, of which its kernels load 16 bytes at a time.
    const bool fused_bias =
        a.bias.present() && a.out.dtype == a.x.dtype && AlignmentOf(a.bias) >= 16;
    Product product;
    absl::Status status = LtStatus(
        cublasLtMatmulDescCreate(&product.handle, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product");
    if (status.ok()) status = product.Set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (status.ok() && fused_bias) {
      status = product.Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      if (status.ok()) status = product.Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, a.bias.data);
    }
    Layout weight, x, out;
    if (status.ok()) status = weight.Set(a.weight);
    if (status.ok()) status = x.Set(a.x);
    if (status.ok()) status = out.Set(a.out);
    if (!status.ok()) return status;
    const auto algorithm = Choose(a, fused_bias, product, weight, x, out);
    if (!algorithm.ok()) return algorithm.status();
    const float alpha = 1.0f, beta = a.accumulate ? 1.0f : 0.0f;
    status = LtStatus(
        cublasLtMatmul(handle, product.handle, &alpha, a.weight.data, weight.handle, a.x.data,
                       x.handle, &beta, a.out.data, out.handle, a.out.data, out.handle, &*algorithm,
                       workspace, kWorkspaceBytes, stream.handle()),
        "product");
    if (status.ok() && a.bias.present() && !fused_bias)
      stream.Check(AddBias(a.bias, a.out, stream.handle()), "Linear: bias");
    return status;
  }

  absl::StatusOr<cublasLtMatmulAlgo_t> Choose(const LinearArgs& a, bool fused_bias,
                                              const Product& product, const Layout& weight,
                                              const Layout& x, const Layout& out) {
    const uint32_t weight_alignment = AlignmentOf(a.weight), x_alignment = AlignmentOf(a.x),
                   out_alignment = AlignmentOf(a.out);
    const ShapeKey key = {a.x.shape[0],
                          a.x.shape[1],
                          a.weight.shape[0],
                          a.x.stride[0],
                          a.weight.stride[0],
                          a.out.stride[0],
                          static_cast<int64_t>(a.x.dtype),
                          static_cast<int64_t>(a.out.dtype),
                          fused_bias,
                          a.accumulate,
                          weight_alignment,
                          x_alignment,
                          out_alignment};
    const auto kept = algorithms.find(key);
    if (kept != algorithms.end()) return kept->second;
    Preference preference;
    absl::Status status =
        LtStatus(cublasLtMatmulPreferenceCreate(&preference.handle), "preference");
    if (status.ok())
      status = preference.Set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    if (status.ok())
      status = preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight_alignment);
    if (status.ok())
      status = preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x_alignment);
    if (status.ok())
      status = preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_alignment);
    if (status.ok())
      status = preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_alignment);
    // All of cuBLASLt's split-K schemes round partial sums to the output's type. Where the sums
    // cancel, or are added to a larger output, leading digits of bf16 would be lost.
    if (status.ok() && a.out.dtype != DType::kF32) {
      status = preference.Set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                              uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
    }
    if (!status.ok()) return status;
    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    status = LtStatus(
        cublasLtMatmulAlgoGetHeuristic(handle, product.handle, weight.handle, x.handle, out.handle,
                                       out.handle, preference.handle, 1, &best, &found),
        "choice of an algorithm");
    if (!status.ok()) return status;
    if (found == 0) {
      return absl::InternalError(absl::StrCat("Linear: cuBLASLt has no algorithm for ",
                                              a.x.shape[0], " x ", a.x.shape[1], " -> ",
                                              a.weight.shape[0]));
    }
    if (algorithms.size() >= kMaxKept) algorithms.clear();
    algorithms[key] = best.algo;
    return best.algo;
  }
};

CudaLinear::CudaLinear(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaLinear::~CudaLinear() = default;

absl::StatusOr<std::unique_ptr<CudaLinear>> CudaLinear::Create() {
  auto impl = std::make_unique<Impl>();
  const absl::Status status = LtStatus(cublasLtCreate(&impl->handle), "cublasLtCreate");
  if (!status.ok()) return status;
  return std::unique_ptr<CudaLinear>(new CudaLinear(std::move(impl)));
}

void CudaLinear::Run(const LinearArgs& args, CudaStream& stream) {
  absl::Status status = impl_->Run(args, stream);
  if (!status.ok()) stream.Fail(std::move(status));
}

}  // namespace apb::kernels::cuda
