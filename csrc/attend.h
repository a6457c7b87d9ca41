// Attention of a block of queries over one span of a context: scores, softmax weights, weighted sums;
// and how the results of spans are merged.
// Knows nothing about units, pages or who owns the results. Keys are read by attend_stored.h and attend_copied.h.
//
//   context    |  span 0  |  span 1  |  span 2 ..|      spans start at multiples of kSpan, whatever the token and the batch
//   a query         [first ........ last)               the part of a span that it sees gives a partial: sums, maximum, total
//
// Per query and span: each score is a dot product as in tile.h; the sums add positions in order, in one accumulator per
// channel. Partials are merged in the order of positions. So a query's result is bit-identical alone, in a batch and in
// a chunk, and however spans are divided among threads.
#pragma once

#include <cmath>

#include "attend_span.h"
#include "kv8_rows.h"
#include "math.h"
#include "tile.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kBlockQueries = 16;  // their scores of a span fit the L1 cache
constexpr int kGroup = 4;              // queries that share a loaded key or value
constexpr int64_t kAtOnce = 16;        // positions of one head that are read before those of the next head

struct Range {
  int64_t first, last;
};

constexpr int64_t kPartialTail = 16;  // floats after the sums, so that partials keep their alignment

constexpr int64_t padded_channels(int64_t C) { return tiles(C, W) * W; }

// Applies the softcap to scores [low, high), multiples of W. Out of line:
// most attention has no cap, and its loops are tuned.
[[gnu::noinline, gnu::cold]] inline void cap_scores(float* scores, int64_t low, int64_t high, float cap) {
  for (int64_t j = low; j < high; j += W) store(scores + j, softcap(load(scores + j), splat(cap)));
}

// Out of line too: few models have a bias.
[[gnu::noinline, gnu::cold]] inline void bias_scores(float* scores, int64_t low, int64_t high, const float* bias) {
  for (int64_t j = low; j < high; j += W) store(scores + j, load(scores + j) + load(bias + j));
}

// Turns the scores that a query sees into exp(score - maximum), with zeros around them up to multiples of W; before
// that applies the cap unless it is 0.
inline void softmax_weights(float* scores, const Query& query, float cap, float* maximum_total) {
  const int64_t first = query.first, last = query.last, low = first / W * W, high = tiles(last, W) * W;
  if (cap != 0.0f) cap_scores(scores, low, high, cap);
  if (query.bias != nullptr) bias_scores(scores, low, high, query.bias);
  for (int64_t j = low; j < first; ++j) scores[j] = -INFINITY;
  for (int64_t j = last; j < high; ++j) scores[j] = -INFINITY;
  V highest = splat(-INFINITY);  // ignores NaNs; their exponentials carry them into the sums
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

// Rows of keys or values of one head: each at its address in `rows` plus `offset` bytes; or (Following) contiguous.
struct Scattered {
  bytes* const* rows;
  int64_t offset;
  bytes* operator[](int64_t j) const { return rows[j] + offset; }
};

struct Following {
  bytes* first;
  int64_t row_bytes;
  bytes* operator[](int64_t j) const { return first + j * row_bytes; }
};

// Prefetches what comes next while something else is in use: each time as many bytes as are consumed, so that
// prefetches neither come in bursts nor delay what is in use. Into the L2 cache: which level is better depends on the
// processor (Zen 4 gained 1.14 x with L2, Zen 3 with L1, 4 KiB ahead).
struct Prefetcher {
  bytes* at;
  template <int64_t kBytes>
  void next() {
#if defined(__GNUC__)
#pragma GCC unroll 8
    for (int64_t line = 0; line < kBytes; line += static_cast<int64_t>(kLine)) __builtin_prefetch(at + line, 0, 2);
#endif
    at += kBytes;
  }
};

struct NoPrefetch {
  template <int64_t kBytes>
  void next() {}
};

// N vectors of channels from `c` on: the sums of M queries += weights @ values over positions [first, last).
template <DType D, int M, int N, class Rows, class Prefetch>
inline void add_values(const float* weights, Rows values, int64_t first, int64_t last, int64_t c, const Query* queries, Prefetch& prefetch) {
  if (first >= last) return;
  float* sums[M];
  V acc[M][N];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    sums[m] = queries[m].partial + c;
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = load(sums[m] + n * W);
  }
  for (int64_t j = first; j < last; ++j) {
    prefetch.template next<stored_bytes<D>(N * W)>();
    V weight[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) weight[m] = pin_in_register(splat(weights[m * kSpan + j]));
    StoredVectors<D, N> vectors(values[j], c);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const V v = pin_in_register(vectors[n]);  // one at a time: accumulators and weights fill the registers
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m][n] = fma(weight[m], v, acc[m][n]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(sums[m] + n * W, acc[m][n]);
}

// All channels, a few positions at a time, so that values are read from memory once and in order.
template <DType D, int M, class Rows, class Prefetch>
inline void add_all_values(const float* weights, Rows values, int64_t first, int64_t last, int64_t C, const Query* queries, Prefetch prefetch) {
  constexpr int64_t kStep = 32;
  constexpr int kWide = kRegisters == 16 && (W == 4 || M == kGroup) ? 2 : 4;  // as many accumulators as registers allow
  for (int64_t begin = first; begin < last; begin += kStep) {
    const int64_t end = smaller(begin + kStep, last);
    int64_t c = 0;
    for (; c + kWide * W <= C; c += kWide * W) add_values<D, M, kWide>(weights, values, begin, end, c, queries, prefetch);
    for (; c + W <= C; c += W) add_values<D, M, 1>(weights, values, begin, end, c, queries, prefetch);
    if (c == C) continue;
    for (int m = 0; m < M; ++m) {
      V acc = load(queries[m].partial + c);
      for (int64_t j = begin; j < end; ++j)
        acc = fma(splat(weights[m * kSpan + j]), load_stored_part<D>(values[j], c, C - c), acc);
      store(queries[m].partial + c, acc);
    }
  }
}

// The partials of M queries: positions that all of them see are added for all at once,
// others query by query, in the order of positions.
template <DType D, int M>
inline void add_weighted_values(const float* weights, Scattered values, int64_t C, int64_t width, const Query* queries) {
  const NoPrefetch nothing{};
  int64_t first = queries[0].first, last = queries[0].last;
  for (int m = 0; m < M; ++m) {
    first = larger(first, queries[m].first);
    last = smaller(last, queries[m].last);
    for (int64_t c = 0; c < width; c += W) store(queries[m].partial + c, V{});
  }
  if (first >= last) first = last = kSpan;
  for (int m = 0; m < M; ++m) {
    const Query& one = queries[m];
    add_all_values<D, 1>(weights + m * kSpan, values, one.first, smaller(first, one.last), C, &one, nothing);
  }
  add_all_values<D, M>(weights, values, first, last, C, queries, nothing);
  for (int m = 0; m < M; ++m) {
    const Query& one = queries[m];
    add_all_values<D, 1>(weights + m * kSpan, values, larger(last, one.first), one.last, C, &one, nothing);
  }
}

// Calls `body` with the count, 1 to kGroup, as a template argument.
template <class Body>
inline void with_count(int64_t count, Body body) {
  switch (count) {
    case 1: return body.template operator()<1>();
    case 2: return body.template operator()<2>();
    case 3: return body.template operator()<3>();
    default: return body.template operator()<kGroup>();
  }
}

// Turns a query's scores into weights, and zeroes its sums.
inline void begin_partial(const Query& query, float* scores, int64_t width, float cap) {
  softmax_weights(scores, query, cap, query.partial + width);
  for (int64_t c = 0; c < width; c += W) store(query.partial + c, V{});
}

inline bool see_the_same(const Query* queries, int64_t count) {
  for (int64_t i = 1; i < count; ++i)
    if (queries[i].first != queries[0].first || queries[i].last != queries[0].last) return false;
  return true;
}

// Computes the partials of `count` queries from their scores.
template <DType D>
inline void finish(const Query* queries, int64_t count, Scattered values, int64_t C, int64_t width, float cap, float* scores) {
  for (int64_t i = 0; i < count; ++i)
    softmax_weights(scores + i * kSpan, queries[i], cap, queries[i].partial + width);
  for (int64_t m = 0; m < count; m += kGroup)
    with_count(smaller(kGroup, count - m),
               [&]<int M>() { add_weighted_values<D, M>(scores + m * kSpan, values, C, width, queries + m); });
}

// The smallest range that contains what `count` queries see.
inline Range seen_by(const Query* queries, int64_t count) {
  Range range{kSpan, 0};
  for (int64_t i = 0; i < count; ++i)
    range = {smaller(range.first, queries[i].first), larger(range.last, queries[i].last)};
  return range;
}

// What a head's attention sink adds to a total of exp(score - maximum).
inline float sink_weight(bytes* sinks, int64_t dtype, int64_t head, float maximum) {
  if (sinks == nullptr) return 0.0f;
  return exp(splat(widen_number(sinks + head * size_of(dtype), dtype) - maximum))[0];
}

// Merges the partial of later positions into `state`, that of earlier ones.
inline void merge_partials(float* state, const float* later, int64_t width) {
  const float before = state[width], after = later[width];
  const float maximum = after > before ? after : before;
  const V keep = exp(splat(before - maximum)), add = exp(splat(after - maximum));
  for (int64_t c = 0; c < width; c += W) store(state + c, fma(load(later + c), add, load(state + c) * keep));
  state[width] = maximum;
  state[width + 1] = state[width + 1] * keep[0] + later[width + 1] * add[0];
}

}  // namespace coterie::COTERIE_ISA
