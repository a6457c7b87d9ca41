// Few queries against a span: keys and values are read once, as they lie in pages, and widened in registers.
// Knows nothing about units or pages.
#pragma once

#include "attend.h"

namespace coterie::COTERIE_ISA {

// Sums of lanes of 4 * kFold vectors at once. First the stages that leave 4 lanes, for kFold vectors: [a a a a b b b b ..].
constexpr int kFold = W / 4;

inline V fold_to_quads(const V* a) {
#if defined(__AVX512F__)
  const V x = _mm512_add_ps(_mm512_shuffle_f32x4(a[0], a[1], 0x44), _mm512_shuffle_f32x4(a[0], a[1], 0xEE));
  const V y = _mm512_add_ps(_mm512_shuffle_f32x4(a[2], a[3], 0x44), _mm512_shuffle_f32x4(a[2], a[3], 0xEE));
  return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xDD));
#elif defined(__AVX2__)
  return _mm256_add_ps(_mm256_permute2f128_ps(a[0], a[1], 0x20), _mm256_permute2f128_ps(a[0], a[1], 0x31));
#else
  return a[0];
#endif
}

// Then the stages within 4 lanes: result lane 4 * i + g is the sum of vector i of group g. The same tree as sum() in vec.h.
inline V fold_quads(V a, V b, V c, V d) {
#if defined(__AVX512F__)
  const V x = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
  const V y = _mm512_add_ps(_mm512_shuffle_ps(c, d, 0x44), _mm512_shuffle_ps(c, d, 0xEE));
  return _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x88), _mm512_shuffle_ps(x, y, 0xDD));
#elif defined(__AVX2__)
  const V x = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xEE));
  const V y = _mm256_add_ps(_mm256_shuffle_ps(c, d, 0x44), _mm256_shuffle_ps(c, d, 0xEE));
  return _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x88), _mm256_shuffle_ps(x, y, 0xDD));
#else
  const V x = V{a[0], a[1], b[0], b[1]} + V{a[2], a[3], b[2], b[3]};
  const V y = V{c[0], c[1], d[0], d[1]} + V{c[2], c[3], d[2], d[3]};
  return V{x[0], x[2], y[0], y[2]} + V{x[1], x[3], y[1], y[3]};
#endif
}

// Lanes of the scores of M queries with the keys of G quads from `g` on: key n of quad i is `j` + g + i + 4 n.
template <DType D, int M, int G>
inline void score_quads(const float* q, const Span& span, int64_t offset, int64_t j, int g, V (*quads)[4]) {
  constexpr int64_t size = D == DType::f32 ? 4 : 2;
  constexpr int kKeys = G * kFold;
  const int64_t C = span.C, width = span.width;
  V acc[M][kKeys];
  bytes* key[kKeys];
#pragma GCC unroll 8
  for (int n = 0; n < kKeys; ++n) {
    key[n] = span.keys[j + g + n / kFold + 4 * (n % kFold)] + offset;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) acc[m][n] = V{};
  }
  int64_t c = 0;
  for (; c + W <= C; c += W) {
    V x[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) x[m] = kept(load(q + m * width + c));
#pragma GCC unroll 8
    for (int n = 0; n < kKeys; ++n) {
      const V k = kept(load_weights<D>(key[n] + c * size));  // one at a time: sums and queries fill the registers
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m][n] = fma(x[m], k, acc[m][n]);
    }
  }
  if (c < C) {
#pragma GCC unroll 8
    for (int n = 0; n < kKeys; ++n) {
      const V k = load_weights_part<D>(key[n] + c * size, C - c);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m][n] = fma(load(q + m * width + c), k, acc[m][n]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int i = 0; i < G; ++i) quads[m][g + i] = fold_to_quads(acc[m] + i * kFold);
}

// Scores of M queries (rows of `width`) with W keys from `j` on, read as they lie, `offset` bytes after the span's.
template <DType D, int M>
inline void score_stored(const float* q, const Span& span, int64_t offset, int64_t j, V scale, float* scores, Ahead& ahead) {
  constexpr int kQuads = W > 8 ? 1 : M == 1 ? 4 : M < 4 ? 2 : 1;  // as many sums as registers allow
  V quads[M][4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; g += kQuads) {
    ahead.ask(kQuads * kFold);
    score_quads<D, M, kQuads>(q, span, offset, j, g, quads);
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
    store(scores + m * kSpan + j, fold_quads(quads[m][0], quads[m][1], quads[m][2], quads[m][3]) * scale);
}

constexpr int64_t kAtOnce = 16;  // positions of a head, then of the next one: of several heads their rows follow one another in memory

// The partials of the queries of several kv heads, `per_head` each and each seeing something of the span, whose `q` follow one another;
// `scores` has a row for each. All heads of a few positions are read together, as they lie in memory. Meanwhile the values are asked for,
// and while these are in use the keys that `next` is for.
inline void attend_stored(const Span& span, const Query* queries, int64_t heads, int64_t per_head, float scale, float* scores,
                          Ahead next) {
  with_dtype(span.dtype, [&]<DType D>() {
    const Range range = seen_by(queries, per_head);
    Ahead values(span, span.to_value, heads, range);
    for (int64_t begin = range.first / W * W; begin < range.last; begin += kAtOnce)
      for (int64_t head = 0; head < heads; ++head)
        for (int64_t j = begin; j < smaller(begin + kAtOnce, range.last); j += W)
          for (int64_t m = 0; m < per_head; m += kGroup) {
            const int64_t row = head * per_head + m;
            with_count(smaller(kGroup, per_head - m), [&]<int M>() {
              score_stored<D, M>(queries[row].q, span, head * span.to_head, j, splat(scale), scores + row * kSpan, values);
            });
          }
    const auto values_of = [&](int64_t head) { return Values{span.keys, span.to_value + head * span.to_head}; };
    if (!see_the_same(queries, per_head)) {
      for (int64_t head = 0; head < heads; ++head)
        finish<D>(queries + head * per_head, per_head, values_of(head), span.C, span.width, scores + head * per_head * kSpan, next);
      return;
    }
    for (int64_t i = 0; i < heads * per_head; ++i) begin_partial(queries[i], scores + i * kSpan, span.width);
    for (int64_t begin = range.first; begin < range.last; begin += kAtOnce)
      for (int64_t head = 0; head < heads; ++head)
        for (int64_t m = 0; m < per_head; m += kGroup) {
          const int64_t row = head * per_head + m;
          with_count(smaller(kGroup, per_head - m), [&]<int M>() {
            add_all_values<D, M>(scores + row * kSpan, values_of(head), begin, smaller(begin + kAtOnce, range.last), span.C,
                                 queries + row, next);
          });
        }
  });
}

}  // namespace coterie::COTERIE_ISA
