// One token alone against packed rows, on AVX2: the whole numbers of a group meet the token unscaled, and their sum is scaled once.
// Knows nothing about ops or how work is shared out.
//
//   acc = scale * (sum of q * x over a group) + acc       lane by lane, groups in order; then the lanes as tile.h says
//
// To scale each weight, as quant.h does, is a quarter to a half of the instructions that a token alone waits for. So these sums agree with quant.h's
// to the rounding of float32, not to the bit. Tokens side by side keep to quant.h: they share its products of scale and weight, and their
// sums fill the registers.
//
//   lanes of int8   | k .. k + 7 |                                              the token as it is
//   lanes of int4   | k + 4 i, i = 0 .. 3 | k + 32 + 4 i |   k = 0 .. 3, 16 .. 19: a step takes one half byte of each 32 bits
//
// The half byte of byte j, masked, is 2^(8 j) (q + 8). The factor is taken out beforehand, exactly but for what underflows: the token is
// multiplied by 2^(-8 j). The 8 is taken out to float32's rounding: a group's sum begins at -8 times the sum of what its lane meets.
//
//   form for int4, per 64 weights   | 4 steps of low halves x 8 floats | 4 of high ones | 8 beginnings |
#pragma once

#include "quant.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kFormFloats = kPairWeights + 8;

// True where a token of an op with T of them is summed so.
constexpr bool quant_alone(int64_t dtype, int64_t T, int64_t K) {
  return kSumsScaled && is_packed(dtype) && !is_rounded(dtype) && T == 1 && K % kBlockWeights == 0;
}
constexpr bool reads_form(int64_t dtype, int64_t T, int64_t K) { return quant_alone(dtype, T, K) && !is_q8(dtype); }

constexpr int64_t kRowsAhead = 2;           // of a stream, fetched meanwhile
constexpr int64_t kStreamedColumns = 1536;  // of int4: shorter rows follow one another, as they are fetched more evenly so

constexpr int64_t form_floats(int64_t K) { return (K + kPairWeights - 1) / kPairWeights * kFormFloats; }

#if defined(__AVX2__) && !defined(__AVX512F__)

// Four steps for one half of the bytes of two blocks, from the 16 floats that it meets in each. Returns what they add up to.
inline V put_steps(const float* x, const float* next, float* out) {
  const auto four = [&](int i) { return _mm256_set_m128(_mm_loadu_ps(next + 4 * i), _mm_loadu_ps(x + 4 * i)); };
  const V a = _mm256_unpacklo_ps(four(0), four(1)), b = _mm256_unpacklo_ps(four(2), four(3));
  const V c = _mm256_unpackhi_ps(four(0), four(1)), d = _mm256_unpackhi_ps(four(2), four(3));
  const V steps[4] = {_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xEE), _mm256_shuffle_ps(c, d, 0x44),
                      _mm256_shuffle_ps(c, d, 0xEE)};
  constexpr float kPlace[4] = {1.0f, 0x1p-8f, 0x1p-16f, 0x1p-24f};
  for (int j = 0; j < 4; ++j) store(out + j * W, steps[j] * splat(kPlace[j]));
  return (steps[0] + steps[1]) + (steps[2] + steps[3]);
}

// The token's form for int4. The second block of the last pair may be missing.
inline void put_form(const float* x, int64_t K, float* out) {
  static constexpr float kZeros[kGroupQ4] = {};
  for (int64_t k = 0; k < K; k += kPairWeights, x += kPairWeights, out += kFormFloats) {
    const float* next = K - k > kGroupQ4 ? x + kGroupQ4 : kZeros;
    const V low = put_steps(x, next, out), high = put_steps(x + 16, next + 16, out + 4 * W);
    store(out + 8 * W, (low + high) * splat(-8.0f));
  }
}

// Four rows of int8, `stride` bytes apart. As many from `ahead` on are fetched meanwhile.
[[gnu::noinline]] inline void alone_dots_q8(const float* x, bytes* w, int64_t stride, int64_t K, float* out, bytes* ahead) {
  V acc[4] = {};
  for (int64_t first = 0; first < K; first += kGroupQ8, ahead += kGroupQ8) {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) fetch_packed(ahead + n * stride, kGroupQ8);
    const int64_t end = K - first < kGroupQ8 ? K : first + kGroupQ8;
    V sums[4] = {};
    for (int64_t block = first; block < end; block += kBlockWeights)
#pragma GCC unroll 4
      for (int64_t k = block; k < block + kBlockWeights; k += W) {
        const V xv = kept(load(x + k));
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) sums[n] = fma(xv, Q8::whole_vector(w + n * stride + k), sums[n]);
      }
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) acc[n] = fma(sums[n], scale_of<Q8>(w + n * stride, K, first), acc[n]);
  }
  sum4(acc[0], acc[1], acc[2], acc[3], out);
}

// sums[n] += the masked numbers of row n * a step of the form. Compilers put a row's multiply-adds one behind the other, and a core does
// not look far enough ahead to work on the next row meanwhile: the order is written out.
inline void add_step(const I (&rows)[4], I mask, const float* form, V (&sums)[4]) {
  I t;
#define COTERIE_ROW(row, sum) \
  "vpand %[mask], %[" #row "], %[t]\n\tvcvtdq2ps %[t], %[t]\n\tvfmadd231ps %[form], %[t], %[" #sum "]\n\t"
  asm(COTERIE_ROW(a, p) COTERIE_ROW(b, q) COTERIE_ROW(c, r) COTERIE_ROW(d, s)
      : [p] "+&x"(sums[0]), [q] "+&x"(sums[1]), [r] "+&x"(sums[2]), [s] "+&x"(sums[3]), [t] "=&x"(t)
      : [a] "x"(rows[0]), [b] "x"(rows[1]), [c] "x"(rows[2]), [d] "x"(rows[3]), [mask] "x"(mask),
        [form] "m"(*reinterpret_cast<const float(*)[W]>(form)));
#undef COTERIE_ROW
}

// acc[n] += the pair of blocks that is in rows[n]; scales(n) are theirs, each in four lanes.
template <class Scales>
inline void add_pair(const float* form, I (&rows)[4], const Scales& scales, V (&acc)[4]) {
  const I mask = _mm256_set1_epi32(15);
  V sums[4];
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) sums[n] = load(form + 8 * W);
  const auto add_half = [&](const float* at) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) add_step(rows, _mm256_slli_epi32(mask, 8 * j), at + j * W, sums);
  };
  add_half(form);
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) rows[n] = _mm256_srli_epi32(rows[n], 4);
  add_half(form + 4 * W);
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) acc[n] = fma(sums[n], scales(n), acc[n]);
}

// Four rows of int4, `stride` bytes apart, with the token's form. As many from `ahead` on are fetched meanwhile, or, not streamed, all bytes
// from there on.
template <bool Streamed>
[[gnu::noinline]] inline void alone_dots_q4(const float* form, bytes* w, int64_t stride, int64_t K, float* out, bytes* ahead) {
  constexpr int64_t kRow = Q4::row_bytes(kPairWeights), kAhead = Streamed ? kRow : 4 * kRow;
  bytes* scale = Q4::scales(w, K);
  V acc[4] = {};
  I rows[4];
  int64_t k = 0;
#pragma GCC unroll 1
  for (; k + kPairWeights <= K; k += kPairWeights, form += kFormFloats, w += kPairWeights / 2, scale += 4, ahead += kAhead) {
#pragma GCC unroll 4
    for (int n = 0; n < (Streamed ? 4 : 1); ++n) fetch_packed(ahead + n * stride, kAhead);
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) rows[n] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + n * stride));
    add_pair(form, rows, [&](int n) { return pair_scales(scale + n * stride); }, acc);
  }
  if (k < K) {
    for (int n = 0; n < 4; ++n)
      rows[n] = _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + n * stride)));
    add_pair(form, rows, [&](int n) { return splat(widen<DType::bf16>(scale + n * stride)); }, acc);
  }
  sum4(acc[0], acc[1], acc[2], acc[3], out);
}

// out[n] = dot(x, w row n) for packed rows of whole blocks. `form`: the token's for int4. Rows are read as four streams (streams.h):
// instructions that fetch alone do not ask for as much as the memory gives, hardware prefetchers add to it.
inline void alone_tile(const float* x, const float* form, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out) {
  const int64_t row = row_bytes(dtype, K), each = N / 4;
  const bool streamed = is_q8(dtype) || K >= kStreamedColumns;
  const auto four = [&](bytes* at, int64_t stride, bytes* ahead, float* sums) {
    if (is_q8(dtype)) return alone_dots_q8(x, at, stride, K, sums, ahead);
    if (streamed) return alone_dots_q4<true>(form, at, stride, K, sums, ahead);
    alone_dots_q4<false>(form, at, stride, K, sums, ahead);
  };
  for (int64_t n = 0; n < each; ++n) {
    if (!streamed) {
      bytes* next = w + 4 * (n + 1) * row;
      four(next - 4 * row, row, next + kPackedAheadBytes, out + 4 * n);
      continue;
    }
    const int64_t ahead = n + kRowsAhead;  // beyond the end of the streams are those of the next tile
    float sums[4];
    four(w + n * row, each * row, w + (ahead < each ? ahead : N + ahead - each) * row, sums);
    for (int64_t i = 0; i < 4; ++i) out[n + i * each] = sums[i];
  }
  for (int64_t n = 4 * each; n < N; ++n) {
    float same[4];  // the row four times
    four(w + n * row, 0, w + (n + 1) * row, same);
    out[n] = same[0];
  }
}

#else

inline void put_form(const float*, int64_t, float*) {}  // nothing is alone here
inline void alone_tile(const float*, const float*, bytes*, int64_t, int64_t, int64_t, float*) {}

#endif

}  // namespace coterie::COTERIE_ISA
