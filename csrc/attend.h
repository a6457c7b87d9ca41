// A block of queries against one span of a context: scores, exponentials, weighted sums; and how the results of spans are joined.
// Knows nothing about units, pages or who owns the results. How keys are read is in attend_stored.h and attend_copied.h.
//
//   context    |  span 0  |  span 1  |  span 2 ..|      spans start at multiples of kSpan, whatever the token and the batch
//   a query         [first ........ last)               what it sees of a span gives a partial: sums, maximum, total
//
// Per query and span: each score is a dot product as in tile.h; the sums add position after position in one accumulator per channel.
// Partials are joined in the order of positions. So a query's result has the same bits alone, in a batch and in a chunk, and however
// spans are shared out.
#pragma once

#include <cmath>

#include "math.h"
#include "tile.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kSpan = 256;
constexpr int64_t kBlockQueries = 16;  // their scores of a span stay in the first-level cache
constexpr int kGroup = 4;              // queries that share a loaded key or value

// The positions of a span as they lie in pages: where the first kv head's keys are, and how far on the next head and the values are.
// Entries outside what any query sees, up to a multiple of W, repeat one that is seen.
struct Span {
  bytes* keys[kSpan];
  int64_t to_head, to_value;
  int64_t dtype, C, width;
};

struct Range {
  int64_t first, last;
};

// The part [first, last) of a span that a query sees, and where its partial goes: `width` sums, the maximum, the total.
// `state`: the partial of all positions before, which this one is then joined to, or null.
struct Query {
  const float* q;
  int64_t first, last;
  float *partial, *state;
};

constexpr int64_t kPartialTail = 16;  // floats after the sums, so that partials keep their alignment

constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int64_t padded_channels(int64_t C) { return tiles(C, W) * W; }

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

// Rows of values, `offset` bytes after the addresses.
struct Values {
  bytes* const* rows;
  int64_t offset;
  bytes* operator[](int64_t j) const { return rows[j] + offset; }
};

// Asks for keys or values that come next while others are in use, so that memory never rests: a few rows (a head's of a position) at a
// time, in the order in which pages hold them. What is in use and what comes next stay in the second-level cache together.
class Ahead {
 public:
  Ahead() = default;
  // `offset`: of the first head's rows from the span's addresses.
  Ahead(const Span& span, int64_t offset, int64_t heads, Range seen)
      : keys_(span.keys), offset_(offset), to_head_(span.to_head), row_bytes_(span.C * size_of(span.dtype)),
        row_lines_(tiles(row_bytes_, kLineBytes)), heads_(heads), first_(seen.first), last_(seen.last) {
    find_piece();
  }

  void ask(int64_t rows) {
    for (int64_t lines = rows * row_lines_; lines > 0 && left_ > 0;) {
      const int64_t count = smaller(lines, left_);
      for (bytes* end = at_ + count * kLineBytes; at_ != end; at_ += kLineBytes) fetch_ahead(at_);
      lines -= count;
      if ((left_ -= count) == 0) next_piece();
    }
  }

 private:
  static constexpr int64_t kPiece = 16, kLineBytes = static_cast<int64_t>(kLine);

  // Positions from first_ on that lie one after the other.
  void find_piece() {
    for (count_ = first_ < last_; count_ > 0 && count_ < smaller(kPiece, last_ - first_); ++count_)
      if (keys_[first_ + count_] != keys_[first_ + count_ - 1] + row_bytes_) break;
    begin();
  }
  void begin() {
    left_ = tiles(count_ * row_bytes_, kLineBytes);
    if (left_ > 0) at_ = keys_[first_] + offset_ + head_ * to_head_;
  }
  void next_piece() {
    if (++head_ < heads_) return begin();
    head_ = 0;
    first_ += count_;
    find_piece();
  }

  bytes* const* keys_ = nullptr;
  int64_t offset_ = 0, to_head_ = 0, row_bytes_ = 0, row_lines_ = 0, heads_ = 0, first_ = 0, last_ = 0;
  bytes* at_ = nullptr;
  int64_t head_ = 0, count_ = 0, left_ = 0;
};

// N vectors of channels from `c` on: the sums of M queries += weights @ values over positions [first, last).
template <DType D, int M, int N>
inline void add_values(const float* weights, Values values, int64_t first, int64_t last, int64_t c, const Query* queries) {
  constexpr int64_t size = D == DType::f32 ? 4 : 2;
  V acc[M][N];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = load(queries[m].partial + c + n * W);
  for (int64_t j = first; j < last; ++j) {
    V weight[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) weight[m] = kept(splat(weights[m * kSpan + j]));
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const V v = kept(load_weights<D>(values[j] + (c + n * W) * size));  // one at a time: sums and weights fill the registers
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m][n] = fma(weight[m], v, acc[m][n]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(queries[m].partial + c + n * W, acc[m][n]);
}

// All channels, a few positions at a time, so that values come from memory once and in order.
template <DType D, int M>
inline void add_all_values(const float* weights, Values values, int64_t first, int64_t last, int64_t C, const Query* queries,
                           Ahead& ahead) {
  constexpr int64_t size = D == DType::f32 ? 4 : 2, kStep = 32;
  constexpr int kWide = W == 4 || (W == 8 && M == kGroup) ? 2 : 4;  // as many sums as registers allow
  for (int64_t begin = first; begin < last; begin += kStep) {
    const int64_t end = smaller(begin + kStep, last);
    ahead.ask(end - begin);
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
inline void weigh(const float* weights, Values values, int64_t C, int64_t width, const Query* queries, Ahead& ahead) {
  int64_t first = queries[0].first, last = queries[0].last;
  for (int m = 0; m < M; ++m) {
    first = larger(first, queries[m].first);
    last = smaller(last, queries[m].last);
    for (int64_t c = 0; c < width; c += W) store(queries[m].partial + c, V{});
  }
  if (first >= last) first = last = kSpan;
  for (int m = 0; m < M; ++m) {
    const Query& one = queries[m];
    add_all_values<D, 1>(weights + m * kSpan, values, one.first, smaller(first, one.last), C, &one, ahead);
  }
  add_all_values<D, M>(weights, values, first, last, C, queries, ahead);
  for (int m = 0; m < M; ++m) {
    const Query& one = queries[m];
    add_all_values<D, 1>(weights + m * kSpan, values, larger(last, one.first), one.last, C, &one, ahead);
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

// The scores of a query become weights; its sums begin at 0.
inline void begin_partial(const Query& query, float* scores, int64_t width) {
  soften(scores, query.first, query.last, query.partial + width);
  for (int64_t c = 0; c < width; c += W) store(query.partial + c, V{});
}

inline bool see_the_same(const Query* queries, int64_t count) {
  for (int64_t i = 1; i < count; ++i)
    if (queries[i].first != queries[0].first || queries[i].last != queries[0].last) return false;
  return true;
}

// From the scores of `count` queries to their partials.
template <DType D>
inline void finish(const Query* queries, int64_t count, Values values, int64_t C, int64_t width, float* scores,
                   Ahead& ahead) {
  for (int64_t i = 0; i < count; ++i)
    soften(scores + i * kSpan, queries[i].first, queries[i].last, queries[i].partial + width);
  for (int64_t m = 0; m < count; m += kGroup)
    with_count(smaller(kGroup, count - m),
               [&]<int M>() { weigh<D, M>(scores + m * kSpan, values, C, width, queries + m, ahead); });
}

// What `count` queries see between them.
inline Range seen_by(const Query* queries, int64_t count) {
  Range range{kSpan, 0};
  for (int64_t i = 0; i < count; ++i)
    range = {smaller(range.first, queries[i].first), larger(range.last, queries[i].last)};
  return range;
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
