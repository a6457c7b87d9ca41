// Adds the weights that follow a row's whole records. Knows nothing about those before them.
#pragma once

#include "integer_q6.h"

namespace coterie::COTERIE_ISA {

template <DType D, bool kVnni, int M, int N>
[[gnu::noinline]] inline void add_copied(const Records& x, const Records& w, bytes* scales, int64_t to_zeros, int64_t left, Lanes (&acc)[M][N]) {
  if constexpr (Record<D>::kQ8) {
    add_group_q8<D, kVnni>(x, w, scales, ceil_div(left, kBlockWeights), acc);
  } else if constexpr (Record<D>::kQ6) {
    add_block_q6<D, kVnni>(x, w, scales, ceil_div(left, kUnitQ6), acc);
  } else {
    for (int n = 0; n < N; ++n) add_few<D, kVnni>(x, w.of(n), ceil_div(left, kGroupQ4), scales + n * w.apart, to_zeros, n, acc);
  }
}

// Adds the `left` weights that follow a row's whole records.
// Works on a copy, so that callers may keep their accumulators in registers.
template <DType D, bool kVnni, int M, int N>
inline void add_rest(const Records& x, const Records& w, bytes* scales, int64_t to_zeros, int64_t left, Lanes (&acc)[M][N]) {
  Lanes sums[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M * N; ++i) sums[i / N][i % N] = acc[i / N][i % N];
  add_copied<D, kVnni>(x, w, scales, to_zeros, left, sums);
#pragma GCC unroll 8
  for (int i = 0; i < M * N; ++i) acc[i / N][i % N] = sums[i / N][i % N];
}

// Adds what a row ends with if that is whole pairs of groups of int4 or a similar type,
// or half a block of q6; otherwise false.
template <DType D, bool kVnni, int M, int N>
[[gnu::always_inline]] inline bool add_pairs_left([[maybe_unused]] const Records& x, [[maybe_unused]] const Records& w, [[maybe_unused]] bytes* scales,
                                                  [[maybe_unused]] int64_t to_zeros, [[maybe_unused]] int64_t left,
                                                  [[maybe_unused]] Lanes (&acc)[M][N]) {
#if defined(__AVX2__) || defined(COTERIE_NEON)
  if constexpr (Record<D>::kQ6) {
    if (ceil_div(left, kUnitQ6) == 2) return add_block_q6<D, kVnni>(x, w, scales, 2, acc), true;
  } else if constexpr (!Record<D>::kQ8) {
    const auto add = [&]<int kPairs>() {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) add_pairs<D, kVnni, kPairs>(x, w.of(n), scales + n * w.apart, to_zeros, n, acc);
      return true;
    };
    switch (ceil_div(left, kGroupQ4)) {
      case 2: return add.template operator()<1>();
      case 4: return add.template operator()<2>();
      case 6: return add.template operator()<3>();
      default: break;
    }
  }
#endif
  return false;
}

}  // namespace coterie::COTERIE_ISA
