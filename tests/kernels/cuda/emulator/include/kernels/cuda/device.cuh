// kernels/cuda/device.cuh for the emulator.
#pragma once
#include <cuda_runtime.h>
#include "kernels/float16.h"
#include "kernels/tensor_view.h"
namespace apb::kernels::cuda {
constexpr int kWarp = 32;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
inline float ToFloat(float x) { return x; }
inline float ToFloat(BFloat16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
inline float ToFloat(Float16 x) { return Float16ToFloat(x); }
template <typename T>
inline uint16_t Round(float f);
template <>
inline uint16_t Round<BFloat16>(float f) {
  uint32_t u = __float_as_uint(f);
  if (f != f) return 0x7fff;
  return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
template <>
inline uint16_t Round<Float16>(float f) {
  return FloatToFloat16(f).bits;
}
template <typename T>
inline uint32_t PackPair(float low, float high) {
  return Round<T>(low) | (uint32_t)Round<T>(high) << 16;
}
template <typename T>
inline T FromFloat(float x) {
  return T{Round<T>(x)};
}
template <>
inline float FromFloat<float>(float x) {
  return x;
}
inline float Exp2(float x) { return exp2f(x); }
inline float WarpSum(float x) {
  for (int o = 16; o > 0; o /= 2) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
inline unsigned char* SharedMemory() { return emulator::Shared(); }
inline uint32_t SharedAddress(const void* p) {
  return (uint32_t)((const unsigned char*)p - emulator::Shared());
}
inline void DoCopy(const emulator::Copy& c) {
  if (c.valid)
    memcpy(c.to, c.from, c.bytes);
  else
    memset(c.to, 0, c.bytes);
}
inline void CpAsync16(void* t, const void* s, bool valid) {
  if ((uintptr_t)t % 16 || (uintptr_t)s % 16) emulator::Die("cp.async alignment");
  emulator::Copy c{t, s, 16, valid};
  if (emulator::Rng()() % 2)
    DoCopy(c);
  else {
    memset(t, 0xff, 16);
    emulator::current->open.push_back(c);
  }
}
inline void CpAsyncCommitGroup() {
  emulator::current->groups.push_back(std::move(emulator::current->open));
  emulator::current->open.clear();
}
template <int N>
inline void CpAsyncWaitGroup() {
  auto& g = emulator::current->groups;
  while (g.size() > N) {
    for (auto& c : g.front()) DoCopy(c);
    g.pop_front();
  }
}
inline uint16_t Half(const void* row, int i) { return ((const uint16_t*)row)[i]; }
inline void Ldmatrix(uint32_t (&r)[4], const void* row) {
  struct A {
    const void* row;
    uint32_t* r;
  } a{row, r};
  emulator::Collective((void*)5, &a, [](void** args) {
    for (int l = 0; l < 32; ++l)
      for (int m = 0; m < 4; ++m) {
        const void* p = ((A*)args[m * 8 + l / 4])->row;
        if ((uintptr_t)p % 16) emulator::Die("ldmatrix alignment");
        ((A*)args[l])->r[m] = Half(p, l % 4 * 2) | (uint32_t)Half(p, l % 4 * 2 + 1) << 16;
      }
  });
}
inline void LdmatrixTrans(uint32_t (&r)[4], const void* row) {
  struct A {
    const void* row;
    uint32_t* r;
  } a{row, r};
  emulator::Collective((void*)6, &a, [](void** args) {
    for (int l = 0; l < 32; ++l)
      for (int m = 0; m < 4; ++m)
        ((A*)args[l])->r[m] = Half(((A*)args[m * 8 + l % 4 * 2])->row, l / 4) |
                              (uint32_t)Half(((A*)args[m * 8 + l % 4 * 2 + 1])->row, l / 4) << 16;
  });
}
// Products of two numbers of 8 or 11 binary digits are exact in float; sums are float.
template <typename T>
inline float OfPair(uint32_t pair, int high) {
  return ToFloat(T{(uint16_t)(high ? pair >> 16 : pair)});
}
template <typename T>
inline void MmaSync(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct A {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } x{c, a, {b0, b1}};
  emulator::Collective((void*)7, &x, [](void** args) {
    static float ma[16][16], mb[16][8];
    for (int l = 0; l < 32; ++l) {
      A& t = *(A*)args[l];
      int g = l / 4, q = l % 4 * 2;
      for (int h = 0; h < 2; ++h) {
        ma[g][q + h] = OfPair<T>(t.a[0], h);
        ma[g + 8][q + h] = OfPair<T>(t.a[1], h);
        ma[g][q + 8 + h] = OfPair<T>(t.a[2], h);
        ma[g + 8][q + 8 + h] = OfPair<T>(t.a[3], h);
        mb[q + h][g] = OfPair<T>(t.b[0], h);
        mb[q + 8 + h][g] = OfPair<T>(t.b[1], h);
      }
    }
    for (int l = 0; l < 32; ++l) {
      A& t = *(A*)args[l];
      int g = l / 4, q = l % 4 * 2;
      for (int i = 0; i < 4; ++i) {
        float s = 0;
        for (int k = 0; k < 16; ++k) s += ma[g + i / 2 * 8][k] * mb[k][q + i % 2];
        t.c[i] += s;
      }
    }
  });
}
}  // namespace apb::kernels::cuda
