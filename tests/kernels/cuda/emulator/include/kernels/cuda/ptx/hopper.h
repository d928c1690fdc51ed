// kernels/cuda/ptx/{mbarrier,tma,wgmma}.cuh for the emulator. Reads descriptors bit by bit, like
// the hardware.
#pragma once
#include <cuda.h>
#include "kernels/cuda/device.cuh"
namespace apb::kernels::cuda {
constexpr int kWarpgroup = 128;
struct Bar {
  int16_t count, pending;
  int32_t tx_phase;
};
inline void Settle(Bar* b) {
  if (b->pending == 0 && (b->tx_phase >> 1) == 0) {
    b->tx_phase ^= 1;
    b->pending = b->count;
  }
  if (b->pending < 0) emulator::Die("too many arrivals");
  ++emulator::progress;
}
inline void MbarrierInit(uint64_t* p, int n) {
  Bar* b = (Bar*)p;
  b->count = b->pending = n;
  b->tx_phase = 0;
}
inline void FenceMbarrierInit() {}
inline void MbarrierArrive(uint64_t* p) {
  Bar* b = (Bar*)p;
  --b->pending;
  Settle(b);
}
inline void MbarrierArriveExpectTx(uint64_t* p, int bytes) {
  Bar* b = (Bar*)p;
  b->tx_phase += bytes * 2;
  --b->pending;
  Settle(b);
}
inline void MbarrierWaitParity(uint64_t* p, int parity) {
  Bar* b = (Bar*)p;
  while ((b->tx_phase & 1) == parity) emulator::Yield();
}
inline void BarSync(int id, int n) { emulator::NamedBarrier(id, n, true); }
inline void BarArrive(int id, int n) { emulator::NamedBarrier(id, n, false); }
inline uint32_t Swizzle(uint32_t a) { return a ^ ((a >> 7 & 7) << 4); }
inline void TmaLoad3d(void* target, const CUtensorMap& map, uint64_t* barrier, int column, int head,
                      int row) {
  if (SharedAddress(target) % 1024) emulator::Die("TMA alignment");
  const CUtensorMap* m = &map;
  memset(target, 0xff, m->box[0] * m->box[2] * 2);
  emulator::Defer([=] {
    for (uint32_t r = 0; r < m->box[2]; ++r)
      for (uint32_t c = 0; c < m->box[0]; ++c) {
        uint16_t v = 0;
        uint64_t R = row + r, C = column + c;
        if (R < m->extent[2] && (uint64_t)head < m->extent[1] && C < m->extent[0])
          v = *(const uint16_t*)((const char*)m->data + C * 2 + head * m->stride[0] +
                                 R * m->stride[1]);
        uint32_t a = SharedAddress(target) + r * 128 + c * 2;
        memcpy(emulator::Shared() + Swizzle(a), &v, 2);
      }
    Bar* b = (Bar*)barrier;
    b->tx_phase -= (int)(m->box[0] * m->box[1] * m->box[2] * 2) * 2;
    Settle(b);
  });
}
template <int N>
void SetmaxnregDec() {}
template <int N>
void SetmaxnregInc() {}
inline uint64_t KMajorDescriptor(const void* tile) {
  return 1ull << 62 | 64ull << 32 | 1ull << 16 | (SharedAddress(tile) & 0x3ffff) / 16;
}
inline uint64_t MnMajorDescriptor(const void* tile, int block) {
  return 1ull << 62 | 64ull << 32 | (uint64_t)(block / 16) << 16 |
         (SharedAddress(tile) & 0x3ffff) / 16;
}
inline uint64_t Advance(uint64_t d, int bytes) { return d + bytes / 16; }
struct Desc {
  uint32_t start, lbo, sbo;
  Desc(uint64_t d)
      : start((d & 0x3fff) * 16), lbo((d >> 16 & 0x3fff) * 16), sbo((d >> 32 & 0x3fff) * 16) {
    if (d >> 62 != 1) emulator::Die("layout");
  }
};
template <typename T>
inline float At(uint32_t a) {
  T v;
  memcpy(&v, emulator::Shared() + Swizzle(a), 2);
  return ToFloat(v);
}
template <typename T>
inline float KMajor(const Desc& d, int r, int k) {
  return At<T>(d.start + r / 8 * d.sbo + r % 8 * 128 + k * 2);
}
template <typename T>
inline float MnMajor(const Desc& d, int n, int k) {
  return At<T>(d.start + n / 64 * d.lbo + k / 8 * d.sbo + k % 8 * 128 + n % 64 * 2);
}
inline void Accumulate(std::vector<float*> d, const float (*A)[16], const float (*B)[256], int N,
                       bool add) {
  for (int t = 0; t < 128; ++t) {
    int w = t / 32, g = t % 32 / 4, q = t % 4 * 2;
    for (int j = 0; j < N / 8; ++j)
      for (int i = 0; i < 4; ++i) {
        int r = w * 16 + g + i / 2 * 8, c = j * 8 + q + i % 2;
        float s = 0;
        for (int k = 0; k < 16; ++k) s += A[r][k] * B[k][c];
        float& x = d[t][4 * j + i];
        x = add ? x + s : s;
      }
  }
}
template <typename T>
inline void WgmmaSS(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  struct X {
    float* d;
    uint64_t a, b;
    bool add;
  } x{d, a, b, add};
  emulator::GroupCollective((void*)11, &x, [](void** args) {
    std::vector<float*> d(128);
    X f = *(X*)args[0];
    for (int t = 0; t < 128; ++t) {
      X& y = *(X*)args[t];
      d[t] = y.d;
      if (y.a != f.a || y.b != f.b || y.add != f.add) emulator::Die("descriptors differ");
    }
    emulator::MyGroup().open.push_back([=] {
      static float A[64][16], B[16][256];
      Desc da(f.a), db(f.b);
      for (int k = 0; k < 16; ++k) {
        for (int r = 0; r < 64; ++r) A[r][k] = KMajor<T>(da, r, k);
        for (int n = 0; n < 128; ++n) B[k][n] = KMajor<T>(db, n, k);
      }
      Accumulate(d, A, B, 128, f.add);
    });
  });
}
template <typename T, int R>
inline void WgmmaRS(float (&d)[R], const uint32_t (&a)[4], uint64_t b) {
  struct X {
    float* d;
    const uint32_t* a;
    uint64_t b;
  } x{d, a, b};
  emulator::GroupCollective((void*)(intptr_t)(12 + R), &x, [](void** args) {
    std::vector<float*> d(128);
    std::vector<const uint32_t*> av(128);
    uint64_t bd = ((X*)args[0])->b;
    for (int t = 0; t < 128; ++t) {
      d[t] = ((X*)args[t])->d;
      av[t] = ((X*)args[t])->a;
      if (((X*)args[t])->b != bd) emulator::Die("descriptors differ");
    }
    emulator::MyGroup().open.push_back([=] {
      static float A[64][16], B[16][256];
      Desc db(bd);
      for (int t = 0; t < 128; ++t) {
        int r = t / 32 * 16 + t % 32 / 4, q = t % 4 * 2;
        for (int h = 0; h < 2; ++h) {
          A[r][q + h] = OfPair<T>(av[t][0], h);
          A[r + 8][q + h] = OfPair<T>(av[t][1], h);
          A[r][q + 8 + h] = OfPair<T>(av[t][2], h);
          A[r + 8][q + 8 + h] = OfPair<T>(av[t][3], h);
        }
      }
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < R * 2; ++n) B[k][n] = MnMajor<T>(db, n, k);
      Accumulate(d, A, B, R * 2, true);
    });
  });
}
inline void WgmmaFence() {}
inline void WgmmaCommitGroup() {
  int x;
  emulator::GroupCollective((void*)13, &x, [](void**) {
    auto& g = emulator::MyGroup();
    g.committed.push_back(std::move(g.open));
    g.open.clear();
  });
}
template <int N>
inline void WgmmaWaitGroup() {
  int x;
  emulator::GroupCollective((void*)14, &x, [](void**) {
    auto& g = emulator::MyGroup();
    while (g.committed.size() > N) {
      for (auto& f : g.committed.front()) f();
      g.committed.pop_front();
    }
  });
}
inline void ComputeNow(float v, float* w) { *w = v; }
template <int N>
inline void WarpgroupFenceOperand(float (&)[N]) {}
template <int N>
inline void WarpgroupFenceOperand(uint32_t (&)[N][4]) {}
}  // namespace apb::kernels::cuda
