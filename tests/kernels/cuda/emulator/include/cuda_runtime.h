// The part of the CUDA runtime API that kernels/cuda uses, on CPU memory.
#pragma once
#include <utility>

#include "tests/kernels/cuda/emulator/emulator.h"
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorInsufficientDriver = 35,
  cudaErrorStreamCaptureUnsupported = 900
};
using EmuWork = std::vector<std::function<void()>>;
struct EmuStream {
  bool capturing = false, invalid = false;
  EmuWork captured;
};
using cudaStream_t = EmuStream*;
using cudaGraph_t = EmuWork*;
using cudaGraphExec_t = EmuWork*;
enum { cudaStreamCaptureModeRelaxed };
// Does the work, or captures it if the stream is capturing.
inline cudaError_t EmuDo(cudaStream_t s, std::function<void()> work) {
  if (s->capturing) {
    s->captured.push_back(std::move(work));
  } else {
    work();
  }
  return cudaSuccess;
}
inline cudaError_t EmuForbidden(cudaStream_t s) {
  if (!s->capturing) return cudaSuccess;
  s->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, int) {
  if (s->capturing) return cudaErrorInvalidValue;
  s->capturing = true;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) {
  const bool invalid = std::exchange(s->invalid, false);
  s->capturing = false;
  EmuWork work = std::exchange(s->captured, {});
  *g = invalid ? nullptr : new EmuWork(std::move(work));
  return invalid ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long) {
  *e = new EmuWork(*g);
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t g) {
  delete g;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) {
  delete e;
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
  for (const auto& work : *e) EmuDo(s, work);
  return cudaSuccess;
}
enum {
  cudaStreamNonBlocking,
  cudaHostAllocDefault,
  cudaHostAllocMapped,
  cudaMemcpyDefault,
  cudaDevAttrComputeCapabilityMajor
};
struct cudaDeviceProp {
  int major, minor, multiProcessorCount;
  char name[64];
};
inline const char* cudaGetErrorName(cudaError_t) { return "emulated"; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** p, size_t n) {
  *p = malloc(n ? n : 1);
  memset(*p, 0xff, n);  // NaN
  return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** p, size_t n, int) { return cudaMalloc(p, n); }
inline cudaError_t cudaFree(void* p) {
  free(p);
  return cudaSuccess;
}
inline cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t s) {
  if (s->capturing) return EmuForbidden(s);  // a real capture would make it memory of the graph
  int e = posix_memalign(p, 256, n);
  memset(*p, 0xff, n);
  return e ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t) {
  free(p);
  return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** p, size_t n, int) {
  *p = malloc(n);
  return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* p) {
  free(p);
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, int) {
  *s = new EmuStream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t s) { return EmuForbidden(s); }
inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
  delete s;
  return cudaSuccess;
}
// Work is done when it is enqueued, so an event is the time of its recording.
using cudaEvent_t = double*;
inline cudaError_t cudaEventCreate(cudaEvent_t* e) {
  *e = new double(0);
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
  delete e;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  *e = std::chrono::duration<double>(now).count();
  return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = (*end - *begin) * 1e3;
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* t, const void* s, size_t n, int, cudaStream_t stream) {
  return EmuDo(stream, [=] { memcpy(t, s, n); });
}
inline cudaError_t cudaMemcpy2DAsync(void* t, size_t tp, const void* s, size_t sp, size_t w,
                                     size_t h, int, cudaStream_t stream) {
  return EmuDo(stream, [=] {
    for (size_t i = 0; i < h; ++i) memcpy((char*)t + i * tp, (const char*)s + i * sp, w);
  });
}
inline cudaError_t cudaGetDeviceCount(int* n) {
  *n = 1;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* v, int, int) {
  *v = 9;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  p->major = getenv("APB_EMULATE_SM80") ? 8 : 9;
  p->minor = 0;
  p->multiProcessorCount = 8;
  strcpy(p->name, "emulated");
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
  *f = *t = 1 << 30;
  return cudaSuccess;
}
