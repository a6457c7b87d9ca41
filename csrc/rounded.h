// Dot products of activations rounded to int8 (rounded_record.h) with packed rows, in whole numbers.
// Knows nothing about ops or how work is shared out.
//
//   sum over groups of (sum of q * weight's whole number) * (scale * weight's scale)
//
// Eight lanes, whatever the instruction set: a lane's sum over a group is whole, so exact, and groups are added in order. No blocking
// of tokens or rows changes the bits.
#pragma once

#include "rounded_record.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX2__)

using Lanes = __m256;

inline __m256i load_bytes(bytes* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
inline Lanes load_lanes(bytes* at) { return _mm256_loadu_ps(reinterpret_cast<const float*>(at)); }
inline Lanes add_product(__m256i whole, Lanes scale, Lanes acc) { return _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, acc); }
inline __m256i pairs_added(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

inline float sum_lanes(Lanes v) {
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

// M tokens with the group of up to 4 blocks at `w`: the magnitudes of the weights times q with their signs.
template <int M>
inline void add_group_q8(bytes* record, int64_t token_bytes, bytes* w, bytes* scale, int64_t blocks, Lanes* acc, int64_t step) {
  __m256i whole[M];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) whole[m] = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int64_t i = 0; i < blocks; ++i) {
    const __m256i weight = load_bytes(w + i * kBlockWeights), magnitude = _mm256_abs_epi8(weight);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const __m256i q = _mm256_sign_epi8(load_bytes(record + m * token_bytes + i * kBlockWeights), weight);
      whole[m] = _mm256_add_epi32(whole[m], pairs_added(_mm256_maddubs_epi16(magnitude, q)));
    }
  }
  // The two bytes before a scale belong to the row too.
  const Lanes both = _mm256_broadcast_ss(reinterpret_cast<const float*>(scale - 2));
  const Lanes of_weight = _mm256_and_ps(both, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
    acc[m * step] = add_product(whole[m], of_weight * load_lanes(record + m * token_bytes + kScalesAtQ8), acc[m * step]);
}

template <int M>
inline void add_pair_q4(bytes* record, int64_t token_bytes, __m256i both, Lanes of_weight, Lanes* acc, int64_t step) {
  const __m256i low_half = _mm256_set1_epi8(15);
  const __m256i low = _mm256_and_si256(both, low_half), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    bytes* at = record + m * token_bytes;
    const __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(low, load_bytes(at)), _mm256_maddubs_epi16(high, load_bytes(at + 32)));
    const __m256i whole = pairs_added(_mm256_sub_epi16(sums, load_bytes(at + kSumsAtQ4)));
    acc[m * step] = add_product(whole, of_weight * load_lanes(at + kScalesAtQ4), acc[m * step]);
  }
}

#else

struct Lanes {
  float lane[kLanes];
};

inline Lanes load_lanes(bytes* at) {
  Lanes v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

inline float sum_lanes(const Lanes& v) {
  float four[4];
  for (int i = 0; i < 4; ++i) four[i] = v.lane[i] + v.lane[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

template <int M>
inline void add_group_q8(bytes* record, int64_t token_bytes, bytes* w, bytes* scale, int64_t blocks, Lanes* acc, int64_t step) {
  for (int m = 0; m < M; ++m, record += token_bytes, acc += step) {
    int32_t whole[kLanes] = {};
    for (int64_t i = 0; i < blocks * kBlockWeights; ++i)
      whole[i % kBlockWeights / 4] += static_cast<int8_t>(w[i]) * static_cast<int8_t>(record[i]);
    const Lanes of_token = load_lanes(record + kScalesAtQ8);
    for (int i = 0; i < kLanes; ++i)
      acc->lane[i] += static_cast<float>(whole[i]) * (widen<DType::bf16>(scale) * of_token.lane[i]);
  }
}

struct Pair {
  uint8_t of[2 * kBlockWeights / 2];
};

template <int M>
inline void add_pair_q4(bytes* record, int64_t token_bytes, const Pair& both, const Lanes& of_weight, Lanes* acc, int64_t step) {
  for (int m = 0; m < M; ++m, record += token_bytes, acc += step) {
    int32_t whole[kLanes] = {};
    for (int64_t i = 0; i < 32; ++i) {
      const int low = both.of[i] & 15, high = both.of[i] >> 4;
      whole[i / 4] += (low - 8) * static_cast<int8_t>(record[i]) + (high - 8) * static_cast<int8_t>(record[32 + i]);
    }
    const Lanes of_token = load_lanes(record + kScalesAtQ4);
    for (int i = 0; i < kLanes; ++i) acc->lane[i] += static_cast<float>(whole[i]) * (of_weight.lane[i] * of_token.lane[i]);
  }
}

// The scales of groups a and b, which follow one another, each in four lanes.
inline Lanes pair_scales(bytes* at) {
  Lanes v;
  for (int i = 0; i < kLanes; ++i) v.lane[i] = widen<DType::bf16>(at + i / 4 * 2);
  return v;
}

#endif

// M tokens with N rows of int8. Weights from `ahead` on are fetched meanwhile.
template <int M, int N>
inline void rounded_dots_q8(bytes* x, int64_t token_bytes, bytes* w, int64_t K, Lanes (*acc)[N], bytes* ahead) {
  const int64_t stride = Q8::row_bytes(K);
  bytes* scales = Q8::scales(w, K);
  constexpr int64_t kAhead = N * Q8::row_bytes(kGroupQ8);
  int64_t k = 0;
  for (; k + kGroupQ8 <= K; k += kGroupQ8, x += kRecordQ8, scales += 2, ahead += kAhead) {
    if (M == 1) fetch_packed(ahead, kAhead);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) add_group_q8<M>(x, token_bytes, w + k + n * stride, scales + n * stride, 4, &acc[0][n], N);
  }
  if (k < K)
    for (int n = 0; n < N; ++n)
      add_group_q8<M>(x, token_bytes, w + k + n * stride, scales + n * stride, whole_parts(K - k, kBlockWeights), &acc[0][n], N);
}

template <int M, int N>
inline void rounded_dots_q4(bytes* x, int64_t token_bytes, bytes* w, int64_t K, Lanes (*acc)[N], bytes* ahead) {
  const int64_t stride = Q4::row_bytes(K), blocks = whole_parts(K, kBlockWeights);
  bytes* scales = Q4::scales(w, K);
  constexpr int64_t kAhead = N * Q4::row_bytes(kPairWeights);
  int64_t block = 0;
  for (; block + 2 <= blocks; block += 2, x += kRecordQ4, w += kBlockWeights, scales += 4, ahead += kAhead) {
    if (M == 1) fetch_packed(ahead, kAhead);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
#if defined(__AVX2__)
      const __m256i both = load_bytes(w + n * stride);
#else
      Pair both;
      std::memcpy(&both, w + n * stride, sizeof both);
#endif
      add_pair_q4<M>(x, token_bytes, both, pair_scales(scales + n * stride), &acc[0][n], N);
    }
  }
  if (block < blocks)
    for (int n = 0; n < N; ++n) {  // one group without another: as if the other's weights, scale and q were 0
      uint8_t pair[32] = {}, two[4] = {};
      std::memcpy(pair, w + n * stride, 16);
      std::memcpy(two, scales + n * stride, 2);
#if defined(__AVX2__)
      const __m256i both = load_bytes(pair);
#else
      Pair both;
      std::memcpy(&both, pair, sizeof both);
#endif
      add_pair_q4<M>(x, token_bytes, both, pair_scales(two), &acc[0][n], N);
    }
}

template <DType D, int M, int N>
inline void rounded_dots(bytes* x, int64_t token_bytes, bytes* w, int64_t K, float* out, int64_t out_stride) {
  Lanes acc[M][N];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = Lanes{};
  bytes* ahead = w + N * row_bytes(static_cast<int64_t>(D), K) + kPackedAheadBytes;
  if constexpr (D == DType::q8) {
    rounded_dots_q8<M, N>(x, token_bytes, w, K, acc, ahead);
  } else {
    rounded_dots_q4<M, N>(x, token_bytes, w, K, acc, ahead);
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) out[m * out_stride + n] = sum_lanes(acc[m][n]);
}

// M tokens with all rows.
template <DType D, int M>
inline void rounded_rows(bytes* x, int64_t token_bytes, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride) {
  constexpr int kRows = M == 1 ? 4 : 2;  // with the tokens, as many sums as registers allow
  const int64_t stride = row_bytes(static_cast<int64_t>(D), K);
  int64_t n = 0;
  for (; n + kRows <= N; n += kRows) rounded_dots<D, M, kRows>(x, token_bytes, w + n * stride, K, out + n, out_stride);
  for (; n < N; ++n) rounded_dots<D, M, 1>(x, token_bytes, w + n * stride, K, out + n, out_stride);
}

template <DType D>
inline void rounded_tokens(bytes* x, int64_t tokens, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride) {
  const int64_t token_bytes = rounded_bytes(static_cast<int64_t>(D), K);
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4) rounded_rows<D, 4>(x + t * token_bytes, token_bytes, w, N, K, out + t * out_stride, out_stride);
  bytes* rest = x + t * token_bytes;
  float* y = out + t * out_stride;
  switch (tokens - t) {
    case 3: return rounded_rows<D, 3>(rest, token_bytes, w, N, K, y, out_stride);
    case 2: return rounded_rows<D, 2>(rest, token_bytes, w, N, K, y, out_stride);
    case 1: return rounded_rows<D, 1>(rest, token_bytes, w, N, K, y, out_stride);
    default: return;
  }
}

// out[t * out_stride + n] = dot(rounded x row t, w row n); `x` are the records of the tokens, one after the other.
inline void rounded_tile(bytes* x, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride) {
  if (is_q8(dtype)) return rounded_tokens<DType::q8>(x, tokens, w, N, K, out, out_stride);
  rounded_tokens<DType::q4>(x, tokens, w, N, K, out, out_stride);
}

}  // namespace coterie::COTERIE_ISA
