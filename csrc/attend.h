// A block of queries against one span of a context: scores, exponentials, weighted sums; and how the results of spans are joined.
// Knows nothing about units, pages or who owns the results.
//
//   context    |  span 0  |  span 1  |  span 2 ..|      spans start at multiples of kSpan, whatever the token and the batch
//   a query         [first ........ last)               what it sees of a span gives a partial: sums, maximum, total
//
// Per query and span: each score is a dot product as in tile.h; the sums add position after position in one accumulator per channel.
// Partials are joined in the order of positions. So a query's result has the same bits alone, in a batch and in a chunk, and however
// spans are shared out. Keys are read either as they lie (few queries) or from a copy with positions in the lanes (many).
#pragma once

#include <cmath>

#include "math.h"
#include "tile.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kSpan = 256;
constexpr int64_t kBlockQueries = 16;  // their scores of a span stay in the first-level cache
constexpr int kGroup = 4;              // queries that share a loaded key or value

// One kv head of the positions of a span; entries outside what any query sees, up to a multiple of W, repeat one that is seen.
struct Span {
  bytes* keys[kSpan];
  bytes* values[kSpan];
};

// The part [first, last) of a span that a query sees, and where its partial goes: `width` sums, the maximum, the total.
struct Query {
  const float* q;
  int64_t first, last;
  float* partial;
};

constexpr int64_t kPartialTail = 16;  // floats after the sums, so that partials keep their alignment

constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int64_t padded_channels(int64_t C) { return tiles(C, W) * W; }

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

// Scores of M queries (rows of `width`) with W keys from `j` on, read as they lie.
template <DType D, int M>
inline void score_stored(const float* q, int64_t width, bytes* const* keys, bytes* const* values, int64_t j, int64_t C, V scale, float* scores) {
  constexpr int64_t size = D == DType::f32 ? 4 : 2;
  V quads[M][4];
  const int64_t ahead = smaller(j + 2 * W, kSpan - W);
  for (int g = 0; g < 4; ++g) {
    for (int n = 0; n < kFold; ++n)
      for (int64_t at = 0; at < C * size; at += 64) {
        __builtin_prefetch(keys[ahead + g + 4 * n] + at);
        __builtin_prefetch(values[j + g + 4 * n] + at);
      }
    V acc[M][kFold];
    bytes* key[kFold];
#pragma GCC unroll 4
    for (int n = 0; n < kFold; ++n) {
      key[n] = keys[j + g + 4 * n];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m][n] = V{};
    }
    int64_t c = 0;
    for (; c + W <= C; c += W) {
      V k[kFold];
#pragma GCC unroll 4
      for (int n = 0; n < kFold; ++n) k[n] = load_weights<D>(key[n] + c * size);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const V x = load(q + m * width + c);
#pragma GCC unroll 4
        for (int n = 0; n < kFold; ++n) acc[m][n] = fma(x, k[n], acc[m][n]);
      }
    }
    if (c < C) {
      for (int n = 0; n < kFold; ++n) {
        const V k = load_weights_part<D>(key[n] + c * size, C - c);
        for (int m = 0; m < M; ++m) acc[m][n] = fma(load(q + m * width + c), k, acc[m][n]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) quads[m][g] = fold_to_quads(acc[m]);
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
    store(scores + m * kSpan + j, fold_quads(quads[m][0], quads[m][1], quads[m][2], quads[m][3]) * scale);
}

// out[m] = for W positions at once, the sum over channels of lanes L, L + Step .. of a vector, as the tree of sum().
template <int L, int Step, int M>
inline void lane_sums(const float* q, int64_t width, const float* keys, V* out) {
  if constexpr (Step == W) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) out[m] = V{};
    for (int64_t c = L; c < width; c += W) {
      const V k = load(keys + c * W);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) out[m] = fma(splat(q[m * width + c]), k, out[m]);
    }
  } else {
    V other[M];
    lane_sums<L, 2 * Step, M>(q, width, keys, out);
    lane_sums<L + Step, 2 * Step, M>(q, width, keys, other);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) out[m] = out[m] + other[m];
  }
}

// The same scores from a copy [position / W][channel][W].
template <int M>
inline void score_copied(const float* q, int64_t width, const float* copy, int64_t j, V scale, float* scores) {
  V out[M];
  lane_sums<0, 1, M>(q, width, copy + j * width, out);
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) store(scores + m * kSpan + j, out[m] * scale);
}

// scores [first, last) become exp(score - maximum), and 0 around them up to multiples of W.
inline void soften(float* scores, int64_t first, int64_t last, float* maximum_total) {
  const int64_t low = first / W * W, high = tiles(last, W) * W;
  for (int64_t j = low; j < first; ++j) scores[j] = -INFINITY;
  for (int64_t j = last; j < high; ++j) scores[j] = -INFINITY;
  V highest = splat(-INFINITY);  // passes over NaN; its exponential brings it into the sums
  for (int64_t j = low; j < high; j += W) highest = max(load(scores + j), highest);
  float lanes[W];
  store(lanes, highest);
  float maximum = lanes[0];
  for (int i = 1; i < W; ++i) maximum = lanes[i] > maximum ? lanes[i] : maximum;
  for (int64_t j = low; j < high; j += W) store(scores + j, exp(load(scores + j) - splat(maximum)));
  for (int64_t j = low; j < first; ++j) scores[j] = 0.0f;
  for (int64_t j = last; j < high; ++j) scores[j] = 0.0f;
  V total{};
  for (int64_t j = low; j < high; j += W) total = total + load(scores + j);
  maximum_total[0] = maximum;
  maximum_total[1] = sum(total);
}

// N vectors of channels from `c` on: the sums of M queries += weights @ values over positions [first, last).
template <DType D, int M, int N>
inline void add_values(const float* weights, bytes* const* values, int64_t first, int64_t last, int64_t c, const Query* queries) {
  constexpr int64_t size = D == DType::f32 ? 4 : 2;
  V acc[M][N];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = load(queries[m].partial + c + n * W);
  for (int64_t j = first; j < last; ++j) {
    V v[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) v[n] = load_weights<D>(values[j] + (c + n * W) * size);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const V weight = splat(weights[m * kSpan + j]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = fma(weight, v[n], acc[m][n]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(queries[m].partial + c + n * W, acc[m][n]);
}

// All channels, a few positions at a time, so that values come from memory once and in order.
template <DType D, int M>
inline void add_all_values(const float* weights, bytes* const* values, int64_t first, int64_t last, int64_t C, const Query* queries) {
  constexpr int64_t size = D == DType::f32 ? 4 : 2, kStep = 64;
  constexpr int kWide = W == 4 ? 2 : 4;
  for (int64_t begin = first; begin < last; begin += kStep) {
    const int64_t end = smaller(begin + kStep, last);
    int64_t c = 0;
    for (; c + kWide * W <= C; c += kWide * W) add_values<D, M, kWide>(weights, values, begin, end, c, queries);
    for (; c + W <= C; c += W) add_values<D, M, 1>(weights, values, begin, end, c, queries);
    if (c == C) continue;
    for (int m = 0; m < M; ++m) {
      V acc = load(queries[m].partial + c);
      for (int64_t j = begin; j < end; ++j)
        acc = fma(splat(weights[m * kSpan + j]), load_weights_part<D>(values[j] + c * size, C - c), acc);
      store(queries[m].partial + c, acc);
    }
  }
}

// M queries' partials: what all of them see together, what only some see one by one, in the order of positions.
template <DType D, int M>
inline void weigh(const float* weights, bytes* const* values, int64_t C, int64_t width, const Query* queries) {
  int64_t first = queries[0].first, last = queries[0].last;
  for (int m = 0; m < M; ++m) {
    first = larger(first, queries[m].first);
    last = smaller(last, queries[m].last);
    for (int64_t c = 0; c < width; c += W) store(queries[m].partial + c, V{});
  }
  if (first >= last) first = last = kSpan;
  for (int m = 0; m < M; ++m) {
    const Query& one = queries[m];
    add_all_values<D, 1>(weights + m * kSpan, values, one.first, smaller(first, one.last), C, &one);
  }
  add_all_values<D, M>(weights, values, first, last, C, queries);
  for (int m = 0; m < M; ++m) {
    const Query& one = queries[m];
    add_all_values<D, 1>(weights + m * kSpan, values, larger(last, one.first), one.last, C, &one);
  }
}

// Calls `body` with the count, 1 to kGroup, as a constant.
template <class Body>
inline void with_count(int64_t count, Body body) {
  switch (count) {
    case 1: return body.template operator()<1>();
    case 2: return body.template operator()<2>();
    case 3: return body.template operator()<3>();
    default: return body.template operator()<kGroup>();
  }
}

// How the keys and values of a span are read. `copy`: keys as score_copied wants them, or null; then `values_dtype` is float32.
struct Source {
  const Span* span;
  const float* copy;
  int64_t dtype, values_dtype;
  int64_t C, width;
};

// Scores of `count` <= kGroup queries with the positions [low, high), whole vectors of them.
inline void score(const Source& from, const Query* queries, int64_t count, int64_t low, int64_t high, V scale, float* scores) {
  const float* q = queries[0].q;
  with_count(count, [&]<int M>() {
    if (from.copy != nullptr) {
      for (int64_t j = low; j < high; j += W) score_copied<M>(q, from.width, from.copy, j, scale, scores);
      return;
    }
    with_dtype(from.dtype, [&]<DType D>() {
      for (int64_t j = low; j < high; j += W) score_stored<D, M>(q, from.width, from.span->keys, from.span->values, j, from.C, scale, scores);
    });
  });
}

// The partials of up to kBlockQueries queries, each of which sees something of the span; their `q` follow one another.
// `scores` has a row of kSpan for each.
inline void attend(const Source& from, const Query* queries, int64_t count, float scale, float* scores) {
  int64_t low = kSpan, high = 0;
  for (int64_t i = 0; i < count; ++i) low = smaller(low, queries[i].first), high = larger(high, queries[i].last);
  // A copied vector of keys serves all queries while it is in the first-level cache; stored keys stream by once per group.
  const int64_t step = from.copy != nullptr ? W : kSpan;
  for (int64_t begin = low / step * step; begin < high; begin += step) {
    for (int64_t m = 0; m < count; m += kGroup) {
      const int64_t group = smaller(kGroup, count - m);
      int64_t first = kSpan, last = 0;
      for (int64_t i = m; i < m + group; ++i) first = smaller(first, queries[i].first), last = larger(last, queries[i].last);
      first = larger(first / W * W, begin), last = smaller(last, begin + step);
      if (first < last) score(from, queries + m, group, first, last, splat(scale), scores + m * kSpan);
    }
  }
  for (int64_t m = 0; m < count; m += kGroup) {
    const int64_t group = smaller(kGroup, count - m);
    for (int64_t i = m; i < m + group; ++i)
      soften(scores + i * kSpan, queries[i].first, queries[i].last, queries[i].partial + from.width);
    with_count(group, [&]<int M>() {
      with_dtype(from.values_dtype, [&]<DType D>() {
        weigh<D, M>(scores + m * kSpan, from.span->values, from.C, from.width, queries + m);
      });
    });
  }
}

// a and b with their lanes alternating: the first W, the last W.
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

// Rows become columns: after log2(W) rounds of zipping vector i with vector i + W / 2.
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

// Widen the positions [first, last) of a span: keys with W positions in the lanes, values as rows of `width`, to which the span then
// points.
inline void copy_span(Span& span, int64_t dtype, int64_t first, int64_t last, int64_t C, int64_t width, float* keys, float* values) {
  with_dtype(dtype, [&]<DType D>() {
    constexpr int64_t size = D == DType::f32 ? 4 : 2;
    const auto part = [&](bytes* row, int64_t c) {
      return c + W <= C ? load_weights<D>(row + c * size) : load_weights_part<D>(row + c * size, C - c);
    };
    for (int64_t j = first / W * W; j < last; j += W)
      for (int64_t c = 0; c < width; c += W) {
        V rows[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) rows[i] = part(span.keys[j + i], c);
        transpose(rows);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(keys + j * width + (c + i) * W, rows[i]);
      }
    for (int64_t j = first; j < last; ++j) {
      for (int64_t c = 0; c < width; c += W) store(values + j * width + c, part(span.values[j], c));
      span.values[j] = reinterpret_cast<bytes*>(values + j * width);
    }
  });
}

// state = the partial of positions before, joined with that of later ones.
inline void join(float* state, const float* later, int64_t width) {
  const float before = state[width], after = later[width];
  const float maximum = after > before ? after : before;
  const V keep = exp(splat(before - maximum)), add = exp(splat(after - maximum));
  for (int64_t c = 0; c < width; c += W) store(state + c, fma(load(later + c), add, load(state + c) * keep));
  state[width] = maximum;
  state[width + 1] = state[width + 1] * keep[0] + later[width + 1] * add[0];
}

}  // namespace coterie::COTERIE_ISA
