// Attention by products of bfloat16 (attend_bf16.h).
// A translation unit of its own, once per instruction set, like bf16_products.cpp.
// Knows nothing about units or pages.
#include "attend_bf16.h"

#include "bf16_products_isa.h"
#include "isa.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX512F__)

using Mask = __mmask32;

constexpr int64_t kBlock = kStepColumns;  // channels per vector

inline Mask first_channels(int64_t count) { return count >= kBlock ? ~Mask{0} : (Mask{1} << count) - 1; }

// Channels from c on, never past the row's end. kWhole: C is a multiple of kBlock.
template <bool kWhole>
inline I load_row(const Bf16Rows& rows, int64_t j, int64_t c) {
  bytes* at = rows.rows[j] + rows.offset + 2 * c;
  return kWhole ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi16(first_channels(rows.C - c), at);
}

inline void store_pairs(float* at, I pairs) { _mm512_storeu_si512(at, pairs); }
inline I load_pairs(const float* at) { return _mm512_loadu_si512(at); }
inline I splat_pair(const float* at) {
  int32_t pair;
  std::memcpy(&pair, at, sizeof pair);
  return _mm512_set1_epi32(pair);
}

// Calls `body` with whether this CPU has AVX512-BF16, as a template argument.
template <class Body>
inline void with_products(Body body) {
  if (has_bf16_products()) return body.template operator()<true>();
  body.template operator()<false>();
}

// Calls `body` with whether C channels are whole vectors, as a template argument.
template <class Body>
inline void with_whole(int64_t C, Body body) {
  if (C % kBlock == 0) return body.template operator()<true>();
  body.template operator()<false>();
}

template <bool kNative>
inline __m256i round_to_bf16(V numbers) {
  if constexpr (!kNative) return narrow(numbers);
  __m256i numbers_bf16;
  asm("vcvtneps2bf16 %1, %0" : "=v"(numbers_bf16) : "v"(numbers));
  return numbers_bf16;
}

void round_query(float* row, int64_t width) {
  auto* numbers_bf16 = reinterpret_cast<__m256i*>(row);
  for (int64_t c = 0; c < width; c += W) _mm256_storeu_si256(numbers_bf16++, narrow(load(row + c)));
}

// Transposes W keys: pair p of their channels goes to transposed + p * W.
template <bool kWhole>
inline void transpose_keys(const Bf16Rows& keys, int64_t j, float* transposed) {
  for (int64_t c = 0; c < keys.C; c += kBlock) {
    V rows[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = _mm512_castsi512_ps(load_row<kWhole>(keys, j + i, c));
    transpose_pairs(rows, transposed + c / 2 * W);
  }
}

// Scores of M queries with P times W transposed keys of `pairs` pairs of channels, an even number.
template <bool kNative, int M, int P, class Prefetch>
[[gnu::noinline]] void score_pairs(const float* q, int64_t width, const float* transposed, int64_t pairs, int64_t apart, V scale, float* scores,
                                   Prefetch prefetch) {
  V sums[2][M * P];
#pragma GCC unroll 8
  for (int i = 0; i < M * P; ++i) sums[0][i] = sums[1][i] = V{};
  for (int64_t p = 0; p < pairs; p += 2)
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
      prefetch.template next<static_cast<int64_t>(kLine)>();  // W keys take a cache line per pair
      I keys[P];
#pragma GCC unroll 2
      for (int i = 0; i < P; ++i) keys[i] = pin_in_register(load_pairs(transposed + i * apart + (p + s) * W));
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const I x = pin_in_register(splat_pair(q + m * width + p + s));
#pragma GCC unroll 2
        for (int i = 0; i < P; ++i) add_pairs<kNative>(x, keys[i], sums[s][m * P + i]);
      }
    }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) store(scores + m * kSpan + i * W, (sums[0][m * P + i] + sums[1][m * P + i]) * scale);
}

constexpr int64_t channel_pairs(int64_t C) { return tiles(C, 4) * 2; }

void score_bf16(const Bf16Rows& keys, const Query* queries, int64_t count, float scale, float* scores, bytes* prefetch) {
  alignas(64) float transposed[kMaxBf16Channels / 2 * W];
  with_whole(keys.C, [&]<bool kWhole>() { transpose_keys<kWhole>(keys, 0, transposed); });
  with_products([&]<bool kNative>() {
    const auto score = [&](int64_t m, auto prefetcher) {
      with_count(smaller(kGroup, count - m), [&]<int M>() {
        score_pairs<kNative, M, 1>(queries[m].q, padded_bf16(keys.C), transposed, channel_pairs(keys.C), 0, splat(scale), scores + m * kSpan,
                                   prefetcher);
      });
    };
    score(0, Prefetcher{prefetch});
    for (int64_t m = kGroup; m < count; m += kGroup) score(m, NoPrefetch{});
  });
}

// exp(x) for x <= 0, to 2e-7 unless it is far below 1; at least exp(-87.3). NaN stays NaN.
// 2^(n + r) with |r| <= 1 / 2; 2^r by its Taylor polynomial of degree 6 (remainder below 2e-7).
inline V exp_down(V x) {
  const V powers = _mm512_max_ps(splat(-87.3f), x) * splat(1.44269504088896341f);  // returns its second operand if either is NaN
  const V n = _mm512_roundscale_ps(powers, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = powers - n;
  V p = splat(1.54035303933816e-4f);
  p = fma(p, r, splat(1.33335581464284e-3f));
  p = fma(p, r, splat(9.61812910762848e-3f));
  p = fma(p, r, splat(5.55041086648216e-2f));
  p = fma(p, r, splat(2.40226506959101e-1f));
  p = fma(p, r, splat(6.93147180559945e-1f));
  return _mm512_scalef_ps(fma(p, r, splat(1.0f)), n);
}

template <bool kNative>
inline void rounded_softmax_weights(float* scores, const Query& query, float cap, float* maximum_total) {
  const int64_t first = query.first, last = query.last, low = first / W * W, high = tiles(last, W) * W;
  if (cap != 0.0f) cap_scores(scores, low, high, cap);
  const auto seen = [&](int64_t j) {  // mask of the scores from j on that are seen
    const int64_t before = larger(first - j, 0), after = larger(j + W - last, 0);
    return static_cast<__mmask16>((0xFFFF << before) & (0xFFFF >> after));
  };
  V highest = splat(-INFINITY);  // ignores NaNs; their exponentials carry them into the sums
  for (int64_t j = low; j < high; j += W) highest = _mm512_mask_max_ps(highest, seen(j), load(scores + j), highest);
  const float maximum = _mm512_reduce_max_ps(highest);
  auto* weights = reinterpret_cast<uint16_t*>(scores);
  V total{};
  for (int64_t j = low; j < high; j += W) {
    const V weight = _mm512_maskz_mov_ps(seen(j), exp_down(load(scores + j) - splat(maximum)));
    const __m256i numbers_bf16 = round_to_bf16<kNative>(weight);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + j), numbers_bf16);
    total = total + _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers_bf16), 16));
  }
  maximum_total[0] = maximum;
  maximum_total[1] = sum(total);
}

void begin_partial_bf16(const Query& query, float* scores, int64_t width, float cap) {
  with_products([&]<bool kNative>() { rounded_softmax_weights<kNative>(scores, query, cap, query.partial + width); });
  for (int64_t c = 0; c < width; c += W) store(query.partial + c, V{});
}

// Interleaves the channels of an even and an odd position:
// 32 of each become two vectors, of every 8 the first and the last 4.
inline void pair_rows(I even, I odd, I* pairs) {
  pairs[0] = _mm512_unpacklo_epi16(even, odd);
  pairs[1] = _mm512_unpackhi_epi16(even, odd);
}

// Puts sums back into the order of channels, which pair_rows() changed.
void put_bf16_sums(const float* sums, float total, int64_t C, float* y) {
  const I low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23), high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (int64_t c = 0; c < C; c += kBlock) {
    const V a = load(sums + c), b = load(sums + c + W);
    const V first = _mm512_permutex2var_ps(a, low, b) / splat(total), last = _mm512_permutex2var_ps(a, high, b) / splat(total);
    const Mask wanted = first_channels(C - c);
    _mm512_mask_storeu_ps(y + c, static_cast<__mmask16>(wanted), first);
    _mm512_mask_storeu_ps(y + c + W, static_cast<__mmask16>(wanted >> W), last);
  }
}

// Which of a pair of positions are seen.
enum class Seen { both, even, odd };

// Pairs of values in pages; N vectors of channels from c on.
template <bool kWhole>
struct RowValues {
  Bf16Rows values;
  template <int N>
  void load(int64_t pair, int64_t c, Seen seen, I* out) const {
#pragma GCC unroll 2
    for (int n = 0; n < N; n += 2, c += kBlock) {
      const I even = seen == Seen::odd ? I{} : load_row<kWhole>(values, 2 * pair, c);
      const I odd = seen == Seen::even ? I{} : load_row<kWhole>(values, 2 * pair + 1, c);
      pair_rows(even, odd, out + n);
    }
  }
};

// Pairs of values in a copy.
struct PairedValues {
  const float* at;
  int64_t width;
  template <int N>
  void load(int64_t pair, int64_t c, Seen seen, I* out) const {
    const I mask = _mm512_set1_epi32(seen == Seen::both ? -1 : seen == Seen::even ? 0xFFFF : static_cast<int>(0xFFFF0000));
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      out[n] = load_pairs(at + pair * width + c + n * W);
      if (seen != Seen::both) out[n] = _mm512_and_si512(out[n], mask);
    }
  }
};

// N vectors of channels from c on: the sums of M queries += weights @ values over positions [first, last), not empty.
template <bool kNative, int M, int N, class Values, class Prefetch>
[[gnu::always_inline]] inline void add_value_pairs(const float* weights, const Values& values, Range range, int64_t c, const Query* queries,
                                                   Prefetch& prefetch) {
  V sums[M * N];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sums[m * N + n] = load(queries[m].partial + c + n * W);
  const auto add = [&](int64_t pair, Seen seen) __attribute__((always_inline)) {
    I v[N];
    values.template load<N>(pair, c, seen, v);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) v[n] = pin_in_register(v[n]);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const I weight = pin_in_register(splat_pair(weights + m * kSpan + pair));
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) add_pairs<kNative>(weight, v[n], sums[m * N + n]);
    }
  };
  int64_t pair = range.first / 2;
  if (range.first % 2 != 0) add(pair++, Seen::odd);
  for (; pair < range.last / 2; ++pair) {
    prefetch.template next<N * static_cast<int64_t>(kLine)>();
    add(pair, Seen::both);
  }
  if (range.last % 2 != 0) add(pair, Seen::even);
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(queries[m].partial + c + n * W, sums[m * N + n]);
}

// All channels, a few positions at a time, so that values are read from memory once and in order.
template <bool kNative, int M, class Values, class Prefetch>
inline void add_all_pairs(const float* weights, const Values& values, Range range, int64_t width, const Query* queries, Prefetch prefetch) {
  constexpr int64_t kStep = 32;
  for (int64_t first = range.first; first < range.last;) {
    const int64_t last = smaller((first / kStep + 1) * kStep, range.last);
    int64_t c = 0;
    for (; c + 4 * W <= width; c += 4 * W) add_value_pairs<kNative, M, 4>(weights, values, {first, last}, c, queries, prefetch);
    if (c < width) add_value_pairs<kNative, M, 2>(weights, values, {first, last}, c, queries, prefetch);
    first = last;
  }
}

// The partials of M queries: pairs that all of them see are added for all at once, others query by query.
template <bool kNative, int M, class Values>
inline void add_weighted_pairs(const float* weights, const Values& values, int64_t width, const Query* queries) {
  const NoPrefetch nothing{};
  Range shared{0, kSpan};
  for (int m = 0; m < M; ++m) {
    shared = {larger(shared.first, tiles(queries[m].first, 2) * 2), smaller(shared.last, queries[m].last / 2 * 2)};
    for (int64_t c = 0; c < width; c += W) store(queries[m].partial + c, V{});
  }
  if (shared.first >= shared.last) shared = {kSpan, kSpan};
  const auto alone = [&](int m, Range range) { add_all_pairs<kNative, 1>(weights + m * kSpan, values, range, width, queries + m, nothing); };
  for (int m = 0; m < M; ++m) alone(m, {queries[m].first, smaller(shared.first, queries[m].last)});
  add_all_pairs<kNative, M>(weights, values, shared, width, queries, nothing);
  for (int m = 0; m < M; ++m) alone(m, {larger(shared.last, queries[m].first), queries[m].last});
}

template <bool kNative, class Values>
inline void finish_pairs(const Values& values, int64_t width, const Query* queries, int64_t count, float cap, float* scores) {
  for (int64_t i = 0; i < count; ++i) rounded_softmax_weights<kNative>(scores + i * kSpan, queries[i], cap, queries[i].partial + width);
  for (int64_t m = 0; m < count; m += kGroup)
    with_count(smaller(kGroup, count - m), [&]<int M>() { add_weighted_pairs<kNative, M>(scores + m * kSpan, values, width, queries + m); });
}

void add_weighted_bf16(const Bf16Rows& values, Range seen, const Query* queries, int64_t count, const float* weights, bytes* prefetch) {
  const auto add = [&]<bool kNative, bool kWhole>() {
    for (int64_t m = 0; m < count; m += kGroup)
      with_count(smaller(kGroup, count - m), [&]<int M>() {
        add_all_pairs<kNative, M>(weights + m * kSpan, RowValues<kWhole>{values}, seen, padded_bf16(values.C), queries + m, Prefetcher{prefetch});
      });
  };
  with_products([&]<bool kNative>() {
    with_whole(values.C, [&]<bool kWhole>() { add.template operator()<kNative, kWhole>(); });
  });
}

void finish_bf16(const Bf16Rows& values, const Query* queries, int64_t count, float cap, float* scores) {
  with_products([&]<bool kNative>() { finish_pairs<kNative>(RowValues<false>{values}, padded_bf16(values.C), queries, count, cap, scores); });
}

void copy_bf16(const Span& span, int64_t first, int64_t last, Copy& copy) {
  const Bf16Rows keys{span.keys, 0, span.C}, values{span.keys, span.to_value, span.value_channels};
  for (int64_t j = first / W * W; j < last; j += W) transpose_keys<false>(keys, j, copy.keys + j * span.width / 2);
  const RowValues<false> rows{values};
  for (int64_t pair = first / 2; 2 * pair < last; ++pair) {
    const Seen seen = 2 * pair < first ? Seen::odd : 2 * pair + 1 < last ? Seen::both : Seen::even;
    for (int64_t c = 0; c < span.value_width; c += kBlock) {
      I both[2];
      rows.load<2>(pair, c, seen, both);
      store_pairs(copy.values + pair * span.value_width + c, both[0]);
      store_pairs(copy.values + pair * span.value_width + c + W, both[1]);
    }
  }
}

void attend_bf16(bool native, const Copy& copy, const Span& span, const Query* queries, int64_t count, float scale, float cap, float* scores) {
  const int64_t width = span.width, apart = W * width / 2, pairs = channel_pairs(span.C);
  const Range range = seen_by(queries, count);
  const auto run = [&]<bool kNative>() {
    int64_t vectors = 1;
    for (int64_t j = range.first / W * W; j < range.last; j += vectors * W) {
      vectors = j + W < range.last ? 2 : 1;
      const float* transposed = copy.keys + j * width / 2;
      for (int64_t m = 0; m < count; m += kGroup) {
        const int64_t group = smaller(kGroup, count - m);
        const Range seen = seen_by(queries + m, group);
        if (j + vectors * W <= seen.first || j >= seen.last) continue;
        with_count(group, [&]<int M>() {
          const auto score = vectors == 2 ? score_pairs<kNative, M, 2, NoPrefetch> : score_pairs<kNative, M, 1, NoPrefetch>;
          score(queries[m].q, width, transposed, pairs, apart, splat(scale), scores + m * kSpan + j, {});
        });
      }
    }
    finish_pairs<kNative>(PairedValues{copy.values, span.value_width}, span.value_width, queries, count, cap, scores);
  };
  if (native) return run.template operator()<true>();
  run.template operator()<false>();
}

void attend_bf16(const Copy& copy, const Span& span, const Query* queries, int64_t count, float scale, float cap, float* scores) {
  attend_bf16(has_bf16_products(), copy, span, queries, count, scale, cap, scores);
}

#endif

}  // namespace coterie::COTERIE_ISA
