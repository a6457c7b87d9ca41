// The loops of Limits. Compiled once per instruction set.
#include "limits.h"

#include "vec.h"

namespace coterie::COTERIE_ISA {

namespace {

constexpr int kVectors = 8;                  // in flight; more than a core needs to hide the latency of an addition
constexpr int64_t kBytes = W * 4;            // per vector
constexpr int64_t kLineBytes = 64;
constexpr int kChains = kRegisters == 32 ? 16 : 12;  // enough to hide the latency of two units (NEON: four), and they fit the registers
constexpr int kUnroll = 16;

template <bool kPrefetch, int kStreams>
uint64_t read_loop(const uint8_t* from, int64_t size, int64_t ahead) {
  constexpr int kEach = kVectors / kStreams;
  constexpr int64_t kStep = kEach * kBytes;
  const int64_t stream = size / kStreams / kStep * kStep;
  VI sums[kVectors] = {};
  for (int64_t at = 0; at < stream; at += kStep) {
    if constexpr (kPrefetch)
      for (int64_t line = 0; line < kVectors * kBytes; line += kLineBytes)
        __builtin_prefetch(from + line / kStep * stream + at + ahead + line % kStep);
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      VI v;
      std::memcpy(&v, from + i / kEach * stream + at + i % kEach * kBytes, sizeof v);
      sums[i] ^= v;
    }
  }
  uint64_t total = 0;
  for (int i = 0; i < kVectors; ++i)
    for (int lane = 0; lane < W; ++lane) total ^= static_cast<uint32_t>(sums[i][lane]);
  for (int64_t at = kStreams * stream; at < size; ++at) total ^= from[at];
  return total;
}

uint64_t read(const uint8_t* from, int64_t size, int64_t ahead, int streams) {
  if (streams == 4) return ahead > 0 ? read_loop<true, 4>(from, size, ahead) : read_loop<false, 4>(from, size, 0);
  return ahead > 0 ? read_loop<true, 1>(from, size, ahead) : read_loop<false, 1>(from, size, 0);
}

// `add` adds a product to each lane of an accumulator. Returns the flops: two per lane and call.
template <class Add>
int64_t multiply_add_loop(int64_t rounds, float* sink, Add add) {
  V sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = splat(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int u = 0; u < kUnroll; ++u)
#pragma GCC unroll 16
      for (int i = 0; i < kChains; ++i) add(sums[i]);
  }
  for (int i = 0; i < kChains; ++i) *sink += sum(sums[i]);
  return rounds * kUnroll * kChains * W * 2;
}

int64_t multiply_add(int64_t rounds, float* sink) {
  const V factor = splat(0.999f), term = splat(0.001f);
  return multiply_add_loop(rounds, sink, [&](V& sum) __attribute__((always_inline)) { sum = fma(sum, factor, term); });
}

#if defined(__AVX512F__)
int64_t multiply_add_bf16(int64_t rounds, float* sink) {
  const __m512i pairs = _mm512_set1_epi32(0x3F803F80);  // ones
  // Inline assembly, as this file is not compiled for AVX512-BF16. A lane has two products.
  return 2 * multiply_add_loop(rounds, sink, [&](V& sum) __attribute__((always_inline)) {
    asm("vdpbf16ps %1, %1, %0" : "+v"(sum) : "v"(pairs));
  });
}
#else
constexpr int64_t (*multiply_add_bf16)(int64_t, float*) = nullptr;
#endif

}  // namespace

extern const Limits limits;
const Limits limits = {read, multiply_add, multiply_add_bf16};

}  // namespace coterie::COTERIE_ISA
