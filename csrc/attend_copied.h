// Many queries over a span: keys and values are widened once, keys transposed so that
// positions are in the lanes, and used for all of them.
// Knows nothing about units or pages.
#pragma once

#include "attend.h"

namespace coterie::COTERIE_ISA {

// out[p * M + m] = for P times W positions at once, the sum over the channels in lanes L, L + Step, .. of a vector, by
// the same tree of additions as sum().
template <int L, int Step, int M, int P>
inline void lane_sums(const float* q, int64_t width, const float* keys, V* out) {
  if constexpr (Step == W) {
    const float* next = keys + width * W;
#pragma GCC unroll 8
    for (int i = 0; i < P * M; ++i) out[i] = V{};
    for (int64_t c = L; c < width; c += W) {
      const V k = load(keys + c * W), l = P == 2 ? load(next + c * W) : V{};
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const V channel = splat(q[m * width + c]);
        out[m] = fma(channel, k, out[m]);
        if constexpr (P == 2) out[M + m] = fma(channel, l, out[M + m]);
      }
    }
  } else {
    V other[P * M];
    lane_sums<L, 2 * Step, M, P>(q, width, keys, out);
    lane_sums<L + Step, 2 * Step, M, P>(q, width, keys, other);
#pragma GCC unroll 8
    for (int i = 0; i < P * M; ++i) out[i] = out[i] + other[i];
  }
}

// The same scores from a copy [position / W][channel][W], for P times W positions.
// P = 1 has only M accumulators, too few to hide their latency.
template <int M, int P>
inline void score_copied(const float* q, int64_t width, const float* copy, int64_t j, V scale, float* scores) {
  V out[P * M];
  lane_sums<0, 1, M, P>(q, width, copy + j * width, out);
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) store(scores + m * kSpan + j + p * W, out[p * M + m] * scale);
}

// The partials of up to kBlockQueries queries; a vector of keys is used for all of them while it is in the L1 cache.
inline void attend_copied(const Copy& copy, int64_t width, int64_t value_width, const Query* queries, int64_t count, float scale, float cap,
                          float* scores) {
  const Range range = seen_by(queries, count);
  int64_t vectors = 1;
  for (int64_t j = range.first / W * W; j < range.last; j += vectors * W) {
    vectors = j + W < range.last ? 2 : 1;
    for (int64_t m = 0; m < count; m += kGroup) {
      const int64_t group = smaller(kGroup, count - m);
      const Range seen = seen_by(queries + m, group);
      if (j + vectors * W <= seen.first || j >= seen.last) continue;
      with_count(group, [&]<int M>() {
        const auto score = vectors == 2 ? score_copied<M, 2> : score_copied<M, 1>;
        score(queries[m].q, width, copy.keys, j, splat(scale), scores + m * kSpan);
      });
    }
  }
  finish<DType::f32>(queries, count, {copy.rows, 0}, value_width, value_width, cap, scores);
}

// The lanes of a and b interleaved: the first W, the last W.
inline V zip_low(V a, V b) {
#if defined(__AVX512F__)
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
#elif defined(__AVX2__)
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
#else
  return V{a[0], b[0], a[1], b[1]};
#endif
}

inline V zip_high(V a, V b) {
#if defined(__AVX512F__)
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
#elif defined(__AVX2__)
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
#else
  return V{a[2], b[2], a[3], b[3]};
#endif
}

// Transposes W rows, by log2(W) rounds of interleaving vector i with vector i + W / 2.
inline void transpose(V* rows) {
  for (int round = 1; round < W; round *= 2) {
    V next[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = zip_low(rows[i], rows[i + W / 2]);
      next[2 * i + 1] = zip_high(rows[i], rows[i + W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = next[i];
  }
}

// Widens the positions [first, last) of the span's first head.
inline void copy_span(const Span& span, int64_t first, int64_t last, Copy& copy) {
  with_stored(span.dtype, [&]<DType D>() {
    const int64_t width = span.width, value_width = span.value_width;
    const auto part = [](bytes* row, int64_t c, int64_t C) {
      return c + W <= C ? load_stored<D>(row, c) : load_stored_part<D>(row, c, C - c);
    };
    for (int64_t j = first / W * W; j < last; j += W)
      for (int64_t c = 0; c < width; c += W) {
        V rows[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) rows[i] = part(span.keys[j + i], c, span.C);
        transpose(rows);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(copy.keys + j * width + (c + i) * W, rows[i]);
      }
    for (int64_t j = first; j < last; ++j) {
      float* row = copy.values + j * value_width;
      for (int64_t c = 0; c < value_width; c += W) store(row + c, part(span.keys[j] + span.to_value, c, span.value_channels));
      copy.rows[j] = reinterpret_cast<bytes*>(row);
    }
  });
}

}  // namespace coterie::COTERIE_ISA
