// Dot products of activations rounded to whole numbers (whole_record.h) with packed rows, in whole numbers.
// Knows nothing about ops or how work is shared out.
//
//   sum over groups of (sum of q * weight's whole number) * (scale * weight's scale)
//   q4z: sum over groups of (sum of q * weight's whole number - zero * sum of q) * (scale * weight's scale)
//
// Eight lanes, whatever the instruction set: a lane's sum over a group is whole, so exact, and groups are added in order. No blocking
// of tokens or rows changes the bits.
#pragma once

#include "scratch.h"
#include "streams.h"
#include "whole_wide.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kPackedAheadBytes = 4096;

[[gnu::always_inline]] inline void fetch_packed(bytes* at, int64_t size_bytes) {
#pragma GCC unroll 16
  for (int64_t line = 0; line < size_bytes; line += static_cast<int64_t>(kLine)) fetch_ahead(at + line);
}

// One group of int4 or int2 without another: as if the other's weights, scale, zero and q were 0.
template <DType D, int M, int N>
inline void add_half_pair(const Records& x, bytes* w, bytes* scale, int64_t to_zeros, int n, Lanes (&acc)[M][N]) {
  uint8_t pair[32] = {}, twos[8] = {};
  std::memcpy(pair, w, Record<D>::kGroupBytes);
  std::memcpy(twos, scale, 2);
  if constexpr (Record<D>::kZeros) std::memcpy(twos + 4, scale + to_zeros, 2);
  add_pair_q4<D>(x, pair, twos, 4, n, acc);
}

// out[m * out_stride + n] = the sum of acc[m][n].
template <int M, int N>
inline void put_lanes(const Lanes (&acc)[M][N], float* out, int64_t out_stride) {
  const auto at = [&](int i) -> const Lanes& { return acc[i / N][i % N]; };
  float sums[M * N];
#pragma GCC unroll 2
  for (int i = 0; i + 4 <= M * N; i += 4) sum4_lanes({at(i), at(i + 1), at(i + 2), at(i + 3)}, sums + i);
#pragma GCC unroll 4
  for (int i = M * N / 4 * 4; i < M * N; ++i) sums[i] = sum_lanes(at(i));
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) std::memcpy(out + m * out_stride, sums + m * N, N * sizeof(float));
}

// Rows of a packed type that follow one another.
struct PackedRows {
  bytes* at;
  int64_t K, apart, scales_at;  // bytes from one row to the next, and to its scales
};

template <DType D>
inline PackedRows packed_rows(bytes* w, int64_t K) {
  return {w, K, row_bytes(static_cast<int64_t>(D), K), scales_at(static_cast<int64_t>(D), K)};
}

template <DType D, int M, int N>
[[gnu::noinline]] inline void add_copied(const Records& x, const Records& w, bytes* scales, int64_t to_zeros, int64_t left, Lanes (&acc)[M][N]) {
  if constexpr (Record<D>::kQ8) {
    add_group_q8<D>(x, w, scales, whole_parts(left, kBlockWeights), acc);
  } else {
    for (int n = 0; n < N; ++n) {
      if (left > kGroupQ4) {
        add_pair_q4<D>(x, w.of(n), scales + n * w.apart, to_zeros, n, acc);
      } else {
        add_half_pair<D>(x, w.of(n), scales + n * w.apart, to_zeros, n, acc);
      }
    }
  }
}

// What `left` weights behind a row's whole records add. It works on a copy, so that callers may keep their sums in registers.
template <DType D, int M, int N>
inline void add_rest(const Records& x, const Records& w, bytes* scales, int64_t to_zeros, int64_t left, Lanes (&acc)[M][N]) {
  Lanes sums[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M * N; ++i) sums[i / N][i % N] = acc[i / N][i % N];
  add_copied<D>(x, w, scales, to_zeros, left, sums);
#pragma GCC unroll 8
  for (int i = 0; i < M * N; ++i) acc[i / N][i % N] = sums[i / N][i % N];
}

// M tokens with the first N rows; out[m * out_stride + n]. With `fetches`, weights behind these are fetched meanwhile.
template <DType D, int M, int N>
[[gnu::noinline]] inline void whole_dots(Records x, const PackedRows& rows, float* out, int64_t out_stride, bool fetches) {
  using R = Record<D>;
  constexpr int64_t kType = static_cast<int64_t>(D), kRow = row_bytes(kType, R::kWeights), kScales = R::kQ8 ? 2 : 4;
  const int64_t zeros_apart = R::kZeros ? to_zeros(rows.K) : 0;
  Records w{rows.at, rows.apart};
  bytes *scales = rows.at + rows.scales_at, *ahead = rows.at + N * rows.apart + kPackedAheadBytes, *end = ahead + N * rows.apart;
  Lanes acc[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M * N; ++i) acc[i / N][i % N] = Lanes{};
  int64_t left = rows.K;
#pragma GCC unroll 1
  for (; left >= R::kWeights; left -= R::kWeights, x.at += R::kBytes, w.at += scales_at(kType, R::kWeights), scales += kScales, ahead += N * kRow) {
    if (fetches) fetch_packed(ahead, N * kRow);
    if constexpr (R::kQ8) {
      add_group_q8<D>(x, w, scales, R::kWeights / kBlockWeights, acc);
    } else {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) add_pair_q4<D>(x, w.of(n), scales + n * w.apart, zeros_apart, n, acc);
    }
  }
  if (left > 0) {
#pragma GCC unroll 1
    for (; fetches && ahead < end; ahead += kLine) fetch_ahead(ahead);
    add_rest<D>(x, w, scales, zeros_apart, left, acc);
  }
  put_lanes(acc, out, out_stride);
}

#if defined(__AVX512F__)

// As whole_dots, of the first P pairs of rows. What is left behind whole records is added row by row.
template <DType D, int M, int P>
[[gnu::noinline, gnu::target("avx512vnni")]] inline void wide_dots(Records x, const PackedRows& rows, float* out, int64_t out_stride, bool fetches) {
  using R = Record<D>;
  constexpr int N = 2 * P;
  constexpr int64_t kType = static_cast<int64_t>(D), kRow = row_bytes(kType, R::kWeights), kScales = R::kQ8 ? 2 : 4;
  const int64_t zeros_apart = R::kZeros ? to_zeros(rows.K) : 0;
  Records w{rows.at, rows.apart};
  bytes *scales = rows.at + rows.scales_at, *ahead = rows.at + N * rows.apart + kPackedAheadBytes, *end = ahead + N * rows.apart;
  Wide acc[M][P] = {};
  int64_t left = rows.K;
#pragma GCC unroll 1
  for (; left >= R::kWeights; left -= R::kWeights, x.at += R::kBytes, w.at += scales_at(kType, R::kWeights), scales += kScales, ahead += N * kRow) {
    if (fetches) fetch_packed(ahead, N * kRow);
    if constexpr (R::kQ8) {
      add_wide_q8<D>(x, w, scales, acc);
    } else {
      add_wide_q4<D>(x, w, scales, zeros_apart, acc);
    }
  }
  Lanes sums[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M * P; ++i) {
    sums[i / P][i % P * 2] = _mm512_castps512_ps256(acc[i / P][i % P]);
    sums[i / P][i % P * 2 + 1] = _mm512_extractf32x8_ps(acc[i / P][i % P], 1);
  }
  if (left > 0) {
#pragma GCC unroll 1
    for (; fetches && ahead < end; ahead += kLine) fetch_ahead(ahead);
    add_copied<D>(x, w, scales, zeros_apart, left, sums);
  }
  put_lanes(sums, out, out_stride);
}

// At most kWideTokens tokens with as many of N rows as are pairs: how many; `rows` are then those behind them.
template <DType D, int M>
inline int64_t wide_rows(const Records& x, PackedRows& rows, int64_t N, float* out, int64_t out_stride, bool fetches) {
  int64_t n = 0;
  for (; n + 4 <= N; n += 4, rows.at += 4 * rows.apart) wide_dots<D, M, 2>(x, rows, out + n, out_stride, fetches);
  for (; n + 2 <= N; n += 2, rows.at += 2 * rows.apart) wide_dots<D, M, 1>(x, rows, out + n, out_stride, fetches);
  return n;
}

#endif

// At most 4 tokens with N rows, as many at once as sums fit in registers. With `fetches`, weights behind these are fetched meanwhile.
template <DType D, int M>
inline void whole_rows(const Records& x, PackedRows rows, int64_t N, float* out, int64_t out_stride, bool fetches) {
  constexpr int kRows = M == 1 ? 4 : 2;
  int64_t n = 0;
#if defined(__AVX512F__)
  if constexpr (kInPairs<D>)
    if (has_whole_products()) n = wide_rows<D, M>(x, rows, N, out, out_stride, fetches);
#endif
  for (; n + kRows <= N; n += kRows, rows.at += kRows * rows.apart) whole_dots<D, M, kRows>(x, rows, out + n, out_stride, fetches);
  for (; n < N; ++n, rows.at += rows.apart) whole_dots<D, M, 1>(x, rows, out + n, out_stride, fetches);
}

constexpr int64_t kWholeTokens = 4, kWideTokens = 8;  // at once

#if defined(__AVX512F__)

// kWideTokens tokens with N rows: the last one of an odd number by itself.
template <DType D>
inline void wide_tokens(const Records& x, PackedRows rows, int64_t N, float* out, int64_t out_stride, bool fetches) {
  const int64_t n = wide_rows<D, kWideTokens>(x, rows, N, out, out_stride, fetches);
  for (int64_t m = 0; n < N && m < kWideTokens; m += kWholeTokens)
    whole_rows<D, kWholeTokens>({x.of(m), x.apart}, rows, N - n, out + m * out_stride + n, out_stride, fetches && m == 0);
}

#endif

// All tokens with N rows, kWholeTokens at once, or kWideTokens where the CPU is made for it.
template <DType D>
inline void whole_tokens(Records x, int64_t tokens, const PackedRows& rows, int64_t N, float* out, int64_t out_stride) {
  int64_t t = 0;
#if defined(__AVX512F__)
  if constexpr (kInPairs<D>)
    for (; has_whole_products() && t + kWideTokens <= tokens; t += kWideTokens, x.at += kWideTokens * x.apart, out += kWideTokens * out_stride)
      wide_tokens<D>(x, rows, N, out, out_stride, t == 0);
#endif
  for (; t < tokens; t += kWholeTokens, x.at += kWholeTokens * x.apart, out += kWholeTokens * out_stride) {
    const auto some = [&]<int M>() { whole_rows<D, M>(x, rows, N, out, out_stride, t == 0); };
    switch (tokens - t) {
      case 1: some.template operator()<1>(); break;
      case 2: some.template operator()<2>(); break;
      case 3: some.template operator()<3>(); break;
      default: some.template operator()<4>(); break;
    }
  }
}

constexpr int64_t kRowsTogether = 4, kFewWholeTokens = 16;

// out[t * out_stride + n] = dot(rounded x row t, w row n); `records` are those of the tokens, one after the other. Of few tokens all meet
// some rows while these are in the first-level cache; of many some meet all rows.
inline void whole_tile(bytes* records, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride) {
  const Records x{records, records_bytes(dtype, K)};
  const int64_t together = tokens > kWholeTokens && tokens <= kFewWholeTokens ? kRowsTogether : N;
  with_packed(dtype, [&]<DType D>() {
    PackedRows rows = packed_rows<D>(w, K);
    for (int64_t n = 0; n < N; n += together, rows.at += together * rows.apart)
      whole_tokens<D>(x, tokens, rows, N - n < together ? N - n : together, out + n, out_stride);
  });
}

}  // namespace coterie::COTERIE_ISA
