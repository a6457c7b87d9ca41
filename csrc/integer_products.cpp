// Integer dot products (integer_products.h). A translation unit of its own, once per instruction set: kernels call it for a tile
// at a time, and it is instantiated for many types.
// Knows nothing about ops or how work is shared out.
#include "integer_products.h"

#include "integer_four.h"
#include "integer_panel.h"
#include "integer_panel_avx2.h"
#include "integer_products_isa.h"
#include "integer_rest.h"
#include "streams.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kPackedAheadBytes = 4096;

[[gnu::always_inline]] inline void fetch_packed(bytes* at, int64_t size_bytes) {
#pragma GCC unroll 16
  for (int64_t line = 0; line < size_bytes; line += static_cast<int64_t>(kLine)) fetch_ahead(at + line);
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

// M tokens times the first N rows; out[m * out_stride + n]. With `fetches`, prefetches the weights after these.
template <DType D, bool kVnni, int M, int N>
[[gnu::noinline]] inline void integer_dots(Records x, const PackedRows& rows, float* out, int64_t out_stride, bool fetches) {
  using R = Record<D>;
  constexpr int64_t kType = static_cast<int64_t>(D), kRow = row_bytes(kType, R::kWeights), kScales = R::kQ8 || R::kQ6 ? 2 : 2 * kEight;
  const int64_t zeros_apart = R::kZeros ? to_zeros(rows.K) : 0;
  Records w{rows.at, rows.apart};
  bytes *scales = rows.at + rows.scales_at, *ahead = rows.at + N * rows.apart + kPackedAheadBytes, *end = ahead + N * rows.apart;
  Lanes acc[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M * N; ++i) acc[i / N][i % N] = Lanes{};
  int64_t left = R::kQ8 ? rows.K : ceil_div(rows.K, kGroupQ4) * kGroupQ4;
#pragma GCC unroll 1
  for (; left >= R::kWeights; left -= R::kWeights, x.at += R::kBytes, w.at += scales_at(kType, R::kWeights), scales += kScales, ahead += N * kRow) {
    if (fetches) fetch_packed(ahead, N * kRow);
    if constexpr (R::kQ6) {
      add_block_q6<D, kVnni>(x, w, scales, kBlockQ6 / kUnitQ6, acc);
    } else if constexpr (R::kQ8) {
      add_group_q8<D, kVnni>(x, w, scales, R::kWeights / kBlockWeights, acc);
    } else {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) add_eight<D, kVnni>(x, w.of(n), scales + n * w.apart, zeros_apart, n, acc);
    }
  }
  if (left > 0) {
#pragma GCC unroll 1
    for (; fetches && ahead < end; ahead += kLine) fetch_ahead(ahead);
    if (put_pairs_left<D, kVnni>(x, w, scales, zeros_apart, left, acc, out)) return;
    if (add_pairs_left<D, kVnni>(x, w, scales, zeros_apart, left, acc)) return put_lanes(acc, out, out_stride);
    add_rest<D, kVnni>(x, w, scales, zeros_apart, left, acc);
  }
  put_lanes(acc, out, out_stride);
}

#if defined(__AVX512F__)

// Adds a row's last record if it is whole pairs of groups of int4; otherwise false.
template <DType D, int M, int P>
COTERIE_WIDE bool add_wide_rest(const Records& x, const Records& w, bytes* scales, int64_t to_zeros, int64_t left, Wide (&acc)[M][P]) {
  if constexpr (!Record<D>::kQ8) {
    switch (ceil_div(left, kGroupQ4)) {
      case 2: return add_wide_q4<D, 1>(x, w, scales, to_zeros, acc), true;
      case 4: return add_wide_q4<D, 2>(x, w, scales, to_zeros, acc), true;
      case 6: return add_wide_q4<D, 3>(x, w, scales, to_zeros, acc), true;
      default: break;
    }
  }
  return false;
}

// As integer_dots, for the first P pairs of rows. What is left after whole records is added row by row.
template <DType D, int M, int P>
[[gnu::noinline, gnu::target("avx512vnni")]] inline void wide_dots(Records x, const PackedRows& rows, float* out, int64_t out_stride, bool fetches) {
  using R = Record<D>;
  constexpr int N = 2 * P;
  constexpr int64_t kType = static_cast<int64_t>(D), kRow = row_bytes(kType, R::kWeights), kScales = R::kQ8 ? 2 : 2 * kEight;
  const int64_t zeros_apart = R::kZeros ? to_zeros(rows.K) : 0;
  Records w{rows.at, rows.apart};
  bytes *scales = rows.at + rows.scales_at, *ahead = rows.at + N * rows.apart + kPackedAheadBytes, *end = ahead + N * rows.apart;
  Wide acc[M][P] = {};
  int64_t left = R::kQ8 ? rows.K : ceil_div(rows.K, kGroupQ4) * kGroupQ4;
#pragma GCC unroll 1
  for (; left >= R::kWeights; left -= R::kWeights, x.at += R::kBytes, w.at += scales_at(kType, R::kWeights), scales += kScales, ahead += N * kRow) {
    if (fetches) fetch_packed(ahead, N * kRow);
    if constexpr (R::kQ8) {
      add_wide_q8<D>(x, w, scales, acc);
    } else {
      add_wide_q4<D, 4>(x, w, scales, zeros_apart, acc);
    }
  }
  if (left > 0) {
    if (add_wide_rest<D>(x, w, scales, zeros_apart, left, acc)) left = 0;
#pragma GCC unroll 1
    for (; fetches && ahead < end; ahead += kLine) fetch_ahead(ahead);
  }
  Lanes sums[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M * P; ++i) {
    sums[i / P][i % P * 2] = _mm512_castps512_ps256(acc[i / P][i % P]);
    sums[i / P][i % P * 2 + 1] = _mm512_extractf32x8_ps(acc[i / P][i % P], 1);
  }
  if (left > 0) add_copied<D, false>(x, w, scales, zeros_apart, left, sums);
  put_lanes(sums, out, out_stride);
}

// As integer_dots, with 512-bit vectors along rows of q6.
template <DType D, int M, int N>
[[gnu::noinline, gnu::target("avx512vnni")]] inline void wide_dots_q6(Records x, const PackedRows& rows, float* out, int64_t out_stride, bool fetches) {
  using R = Record<D>;
  constexpr int64_t kBlockBytes = scales_at(static_cast<int64_t>(D), R::kWeights), kRow = kBlockBytes + 2;
  Records w{rows.at, rows.apart};
  bytes *scales = rows.at + rows.scales_at, *ahead = rows.at + N * rows.apart + kPackedAheadBytes;
  Lanes acc[M][N] = {};
  int64_t left = rows.K;
#pragma GCC unroll 1
  for (; left >= R::kWeights; left -= R::kWeights, x.at += R::kBytes, w.at += kBlockBytes, scales += 2, ahead += N * kRow) {
    if (fetches) fetch_packed(ahead, N * kRow);
    add_wide_q6<D, 2>(x, w, scales, acc);
  }
  if (left > 0) {
    if (fetches) fetch_packed(ahead, N * kRow);
    if (ceil_div(left, kUnitQ6) == 2) {
      add_wide_q6<D, 1>(x, w, scales, acc);
    } else {
      add_rest<D, false>(x, w, scales, 0, left, acc);
    }
  }
  put_lanes(acc, out, out_stride);
}

// At most kWideTokens tokens times those of N rows that are whole pairs (q6: by all).
// Returns how many; `rows` then begins after them.
template <DType D, int M>
inline int64_t wide_rows(const Records& x, PackedRows& rows, int64_t N, float* out, int64_t out_stride, bool fetches) {
  int64_t n = 0;
  if constexpr (Record<D>::kQ6) {
    constexpr int kRows = M == 1 ? 4 : 2;
    for (; n + kRows <= N; n += kRows, rows.at += kRows * rows.apart) wide_dots_q6<D, M, kRows>(x, rows, out + n, out_stride, fetches);
    for (; n < N; ++n, rows.at += rows.apart) wide_dots_q6<D, M, 1>(x, rows, out + n, out_stride, fetches);
  } else {
    for (; n + 4 <= N; n += 4, rows.at += 4 * rows.apart) wide_dots<D, M, 2>(x, rows, out + n, out_stride, fetches);
    for (; n + 2 <= N; n += 2, rows.at += 2 * rows.apart) wide_dots<D, M, 1>(x, rows, out + n, out_stride, fetches);
  }
  return n;
}

#endif

// At most 4 tokens times N rows, as many at a time as accumulators fit in registers.
// With `fetches`, prefetches the weights after these.
template <DType D, bool kVnni, int M>
inline void integer_rows(const Records& x, PackedRows rows, int64_t N, float* out, int64_t out_stride, bool fetches) {
  constexpr int kRows = M == 1 && !Record<D>::kQ6 ? 4 : 2;
  int64_t n = 0;
#if defined(__AVX512F__)
  if constexpr (kInPairs<D>) n = wide_rows<D, M>(x, rows, N, out, out_stride, fetches);
#endif
  for (; n + kRows <= N; n += kRows, rows.at += kRows * rows.apart) integer_dots<D, kVnni, M, kRows>(x, rows, out + n, out_stride, fetches);
  for (; n < N; ++n, rows.at += rows.apart) integer_dots<D, kVnni, M, 1>(x, rows, out + n, out_stride, fetches);
}

constexpr int64_t kIntegerTokens = 4, kWideTokens = 8;  // tokens at once

#if defined(__AVX512F__)

// kWideTokens tokens times N rows; the last of an odd number by itself.
template <DType D>
inline void wide_tokens(const Records& x, PackedRows rows, int64_t N, float* out, int64_t out_stride, bool fetches) {
  const int64_t n = wide_rows<D, kWideTokens>(x, rows, N, out, out_stride, fetches);
  for (int64_t m = 0; n < N && m < kWideTokens; m += kIntegerTokens)
    integer_rows<D, false, kIntegerTokens>({x.of(m), x.apart}, rows, N - n, out + m * out_stride + n, out_stride, fetches && m == 0);
}

#endif

// All tokens times N rows, kIntegerTokens at a time, or kWideTokens with AVX-512.
template <DType D, bool kVnni>
inline void integer_tokens(Records x, int64_t tokens, const PackedRows& rows, int64_t N, float* out, int64_t out_stride) {
  int64_t t = 0;
#if defined(__AVX512F__)
  if constexpr (kInPairs<D>)
    for (; t + kWideTokens <= tokens; t += kWideTokens, x.at += kWideTokens * x.apart, out += kWideTokens * out_stride)
      wide_tokens<D>(x, rows, N, out, out_stride, t == 0);
#endif
  for (; t < tokens; t += kIntegerTokens, x.at += kIntegerTokens * x.apart, out += kIntegerTokens * out_stride) {
    const auto some = [&]<int M>() { integer_rows<D, kVnni, M>(x, rows, N, out, out_stride, t == 0); };
    switch (tokens - t) {
      case 1: some.template operator()<1>(); break;
      case 2: some.template operator()<2>(); break;
      case 3: some.template operator()<3>(); break;
      default: some.template operator()<4>(); break;
    }
  }
}

// Writes the records of one token; kBytes: in NEON's format for byte dot products.
template <DType D, bool kBytes = false>
inline void put_token(const float* x, int64_t K, uint8_t* record) {
  using R = Record<D>;
#if defined(COTERIE_NEON)
  const auto put = put_neon_record<D, kBytes>;
#else
  const auto put = put_record<D>;
#endif
  int64_t k = 0;
  for (; k + R::kWeights <= K; k += R::kWeights, record += R::kBytes) put(x + k, record);
  if (k == K) return;
  float rest[R::kWeights] = {};
  std::memcpy(rest, x + k, static_cast<size_t>(K - k) * sizeof(float));
  put(rest, record);
}

#if defined(COTERIE_NEON)
void put_narrow(bool dot, const float* x, int64_t K, int64_t dtype, uint8_t* record) {
  with_packed(dtype, [&]<DType D>() { dot ? put_token<D, true>(x, K, record) : put_token<D>(x, K, record); });
}
#endif

void put_records(const float* x, int64_t K, int64_t dtype, int64_t token, [[maybe_unused]] int64_t tokens, [[maybe_unused]] bool many,
                 uint8_t* records) {
#if defined(__AVX512F__)
  if (!has_integer_products()) return avx2::put_records(x, K, dtype, token, tokens, many, records);
#endif
  const int64_t size_bytes = records_bytes(dtype, K);
  with_packed(dtype, [&]<DType D>() {
#if defined(__AVX512F__)
    if (many) {
      const int64_t place = token % kPanelTokens, first = token - place;
      uint8_t* made = records + ceil_div(tokens, kPanelTokens) * kPanelTokens * size_bytes;  // after the tile, until there are eight
      put_token<D>(x, K, made + place * size_bytes);
      if (place + 1 == kPanelTokens || token + 1 == tokens) interleave_records<D>(made, size_bytes, place + 1, records + first * size_bytes);
      return;
    }
#endif
#if defined(COTERIE_NEON)
    if (has_narrow_products()) return put_token<D, true>(x, K, records + token * size_bytes);
#endif
    put_token<D>(x, K, records + token * size_bytes);
  });
}

constexpr int64_t kRowsTogether = 4, kFewIntegerTokens = 16;

// Few tokens: all of them are multiplied by some rows while these are in the L1 cache.
// Many: some at a time by all rows.
template <DType D>
inline void rows_tile([[maybe_unused]] bool vnni, const Records& x, int64_t tokens, PackedRows rows, int64_t N, float* out, int64_t out_stride) {
  const int64_t together = tokens > kIntegerTokens && tokens <= kFewIntegerTokens ? kRowsTogether : N;
  const auto run = [&]<bool kVnni>() {
    for (int64_t n = 0; n < N; n += together, rows.at += together * rows.apart)
      integer_tokens<D, kVnni>(x, tokens, rows, smaller(together, N - n), out + n, out_stride);
  };
#if (defined(__AVX2__) && !defined(__AVX512F__)) || defined(COTERIE_NEON)
  if (vnni) return run.template operator()<true>();
#endif
  run.template operator()<false>();
}

#if defined(__AVX2__) && !defined(__AVX512F__)

// Uses the large panel or, where no scratch was reserved for it, one that holds one record.
template <DType D>
[[gnu::noinline]] inline void eight_tile(bool vnni, const Records& x, int64_t tokens, const PackedRows& rows, int64_t N, float* out,
                                         int64_t out_stride, float* held, float* held_sums) {
  if (held != nullptr) return eight_panel<D>(vnni, x, tokens, rows, N, out, out_stride, {held, held_sums, kHeld<D>});
  alignas(64) float panel[eight_panel_floats(1)], sums[eight_sums_floats(kFewIntegerTokens)];
  for (int64_t t = 0; t < tokens; t += kFewIntegerTokens)
    eight_panel<D>(vnni, {x.of(t), x.apart}, smaller(kFewIntegerTokens, tokens - t), rows, N, out + t * out_stride, out_stride, {panel, sums, 1});
}

void narrow_tile(bool vnni, bytes* records, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride,
                 float* panel, float* sums) {
  const Records x{records, records_bytes(dtype, K)};
  with_packed(dtype, [&]<DType D>() {
    const PackedRows rows = packed_rows<D>(w, K);
    if constexpr (D == DType::q8) {  // up to kFewIntegerTokens are faster row by row
      if (panel != nullptr) return eight_panel<D>(vnni, x, tokens, rows, N, out, out_stride, {panel, sums, kHeld<D>});
    } else if constexpr (D != DType::q8_int8) {  // both operands are signed: a panel of bytes would take as many instructions as rows do
      if (tokens > kIntegerTokens) return eight_tile<D>(vnni, x, tokens, rows, N, out, out_stride, panel, sums);
    }
    rows_tile<D>(vnni, x, tokens, rows, N, out, out_stride);
  });
}

#endif

#if defined(COTERIE_NEON)

void narrow_tile(bool dot, bytes* records, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride) {
  with_packed(dtype, [&]<DType D>() {
    rows_tile<D>(dot, {records, records_bytes(dtype, K)}, tokens, packed_rows<D>(w, K), N, out, out_stride);
  });
}

#endif

void integer_tile(bytes* records, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride,
                [[maybe_unused]] const Work& work) {
#if defined(__AVX512F__)
  if (!has_integer_products())
    return avx2::narrow_tile(has_narrow_products(), records, tokens, w, dtype, N, K, out, out_stride, work.panel, work.sums);
  const int64_t size_bytes = records_bytes(dtype, K);
  with_packed(dtype, [&]<DType D>() {
    const PackedRows rows = packed_rows<D>(w, K);
    if (work.panel != nullptr) return integer_panel<D>(records, size_bytes, tokens, rows, N, out, out_stride, work);
    rows_tile<D>(false, {records, size_bytes}, tokens, rows, N, out, out_stride);
  });
#elif defined(__AVX2__)
  narrow_tile(has_narrow_products(), records, tokens, w, dtype, N, K, out, out_stride, work.panel, work.sums);
#elif defined(COTERIE_NEON)
  narrow_tile(has_narrow_products(), records, tokens, w, dtype, N, K, out, out_stride);
#else
  with_packed(dtype, [&]<DType D>() {
    rows_tile<D>(false, {records, records_bytes(dtype, K)}, tokens, packed_rows<D>(w, K), N, out, out_stride);
  });
#endif
}

}  // namespace coterie::COTERIE_ISA
