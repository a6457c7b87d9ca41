// Few queries over a span: keys and values are read once, in place, and widened in registers.
// Knows nothing about units or pages.
#pragma once

#include "attend_bf16.h"

namespace coterie::COTERIE_ISA {

// Horizontal sums of 4 * kFold vectors at once.
// First the stages that leave 4 lanes, for kFold vectors: [a a a a b b b b ..].
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

// Scores, still in 4 lanes, of M queries with the keys of G quads from `g` on: key n of quad i is g + i + 4 n.
// kPart: C is not a multiple of W.
template <DType D, int M, int G, bool kPart, class Rows, class Prefetch>
inline void score_quads(const float* q, int64_t C, int64_t width, Rows keys, int g, V (*quads)[4], Prefetch& prefetch) {
  constexpr int kKeys = G * kFold;
  V acc[M][kKeys];
  bytes* key[kKeys];
#pragma GCC unroll 8
  for (int n = 0; n < kKeys; ++n) {
    key[n] = keys[g + n / kFold + 4 * (n % kFold)];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) acc[m][n] = V{};
  }
  const auto add = [&](int64_t c, auto load_key) {
    V x[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) x[m] = pin_in_register(load(q + m * width + c));
#pragma GCC unroll 8
    for (int n = 0; n < kKeys; ++n) {
      const V k = pin_in_register(load_key(n));  // one at a time: accumulators and queries fill the registers
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m][n] = fma(x[m], k, acc[m][n]);
    }
  };
  int64_t c = 0;
  if constexpr (D == kKv8) {
    for (int64_t block = 0; c + kBlockChannels <= C; c += kBlockChannels, block += kBlockBytes) {
      prefetch.template next<kKeys * kBlockBytes>();
      V scales[kKeys];
#pragma GCC unroll 8
      for (int n = 0; n < kKeys; ++n) scales[n] = load_scale(key[n] + block);
#pragma GCC unroll 8
      for (int64_t i = 0; i < kBlockChannels; i += W)
        add(c + i, [&](int n) { return load_int8(key[n] + block + 2 + i) * scales[n]; });
    }
  }
  for (; c + W <= C; c += W) {
    prefetch.template next<stored_bytes<D>(kKeys * W)>();
    add(c, [&](int n) { return load_stored<D>(key[n], c); });
  }
  if constexpr (kPart) {
#pragma GCC unroll 8
    for (int n = 0; n < kKeys; ++n) {
      const V k = load_stored_part<D>(key[n], c, C - c);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m][n] = fma(load(q + m * width + c), k, acc[m][n]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int i = 0; i < G; ++i) quads[m][g + i] = fold_to_quads(acc[m] + i * kFold);
}

// Scores of M queries (rows of `width`) with W keys, read in place.
template <DType D, int M, bool kPart, class Rows, class Prefetch>
inline void score_rows(const float* q, int64_t C, int64_t width, Rows keys, V scale, float* scores, Prefetch prefetch) {
  constexpr int kQuads = W > 8 ? 1 : M == 1 || (W == 4 && kRegisters == 32) ? 4 : M < 4 ? 2 : 1;  // as many accumulators as registers allow
  V quads[M][4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; g += kQuads) score_quads<D, M, kQuads, kPart>(q, C, width, keys, g, quads, prefetch);
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
    store(scores + m * kSpan, fold_quads(quads[m][0], quads[m][1], quads[m][2], quads[m][3]) * scale);
}

// One pass over the keys or the values of a span: kAtOnce positions of a head, then as many of the next head, ..
struct Pass {
  bytes* const* keys = nullptr;
  int64_t offset = 0, to_head = 0, heads = 0, first = 0, last = 0;

  Pass() = default;
  Pass(const Span& span, int64_t offset, int64_t heads, Range seen)
      : keys(span.keys), offset(offset), to_head(span.to_head), heads(heads), first(seen.first), last(seen.last) {}
};

// Prefetch addresses: while one step (kAtOnce positions of a head) of the passes is in use,
// that of the step `steps` further on.
class PrefetchCursor {
 public:
  PrefetchCursor(const Pass& keys, const Pass& values, const Pass& next, int64_t steps) : passes_{keys, values, next} {
    begin();
    for (; steps > 0; --steps) move();
  }

  // The address for a step; after the last one the same again, which costs little.
  bytes* next() {
    bytes* at = at_;
    move();
    return at;
  }

 private:
  void begin() {
    position_ = passes_[pass_].first, head_ = 0;
    if (position_ < passes_[pass_].last) at_ = passes_[pass_].keys[position_] + passes_[pass_].offset;
  }
  void move() {
    const Pass& pass = passes_[pass_];
    if (position_ >= pass.last) return;  // there is no next pass
    if (++head_ == pass.heads) head_ = 0, position_ = (position_ / kAtOnce + 1) * kAtOnce;
    if (position_ < pass.last) at_ = pass.keys[position_] + pass.offset + head_ * pass.to_head;
    else if (pass_ < 2) ++pass_, begin();
  }

  Pass passes_[3];
  int64_t pass_ = 0, position_ = 0, head_ = 0;
  bytes* at_ = nullptr;
};

// The queries of several kv heads over a span's keys and values: `per_head` each, with contiguous `q`, each seeing part
// of the span; `scores` has a row for each. All heads of a few positions are read together, in the order of memory.
class Stored {
 public:
  Stored(const Span& span, const Query* queries, int64_t heads, int64_t per_head, float scale, float cap, float* scores)
      : span_(span), queries_(queries), heads_(heads), per_head_(per_head), scale_(scale), cap_(cap), scores_(scores),
        seen_(seen_by(queries, per_head)) {}

  // `next`: the keys after this span's values, prefetched while the values are in use.
  template <DType D>
  void attend(const Pass& next) {
    PrefetchCursor cursor = prefetch_cursor(next);
    if (span_.C % W == 0) {
      each_step([&](int64_t head, int64_t first, int64_t last) { score<D, false>(head, first, last, Prefetcher{cursor.next()}); });
    } else {
      each_step([&](int64_t head, int64_t first, int64_t last) { score<D, true>(head, first, last, Prefetcher{cursor.next()}); });
    }
    if (!see_the_same(queries_, per_head_)) {
      for (int64_t head = 0; head < heads_; ++head)
        finish<D>(queries_ + head * per_head_, per_head_, values_of(head), span_.value_channels, span_.value_width, cap_, scores_ + head * per_head_ * kSpan);
      return;
    }
    for (int64_t i = 0; i < heads_ * per_head_; ++i) begin_partial(queries_[i], scores_ + i * kSpan, span_.value_width, cap_);
    each_step([&](int64_t head, int64_t first, int64_t last) { add_weighted<D>(head, first, last, Prefetcher{cursor.next()}); });
  }

  // For rounded queries, by attend_bf16.h.
  void attend_rounded(const Pass& next) {
    PrefetchCursor cursor = prefetch_cursor(next);
    each_step([&](int64_t head, int64_t first, int64_t) {
      const int64_t row = head * per_head_, j = first / W * W;
      score_bf16({span_.keys + j, head * span_.to_head, span_.C}, queries_ + row, per_head_, scale_, scores_ + row * kSpan + j, cursor.next());
    });
    const bool same = see_the_same(queries_, per_head_);
    for (int64_t row = 0; row < heads_ * per_head_; row += per_head_)
      if (!same) finish_bf16(bf16_values_of(row / per_head_), queries_ + row, per_head_, cap_, scores_ + row * kSpan);
    if (!same) return;
    for (int64_t i = 0; i < heads_ * per_head_; ++i) begin_partial_bf16(queries_[i], scores_ + i * kSpan, span_.value_width, cap_);
    each_step([&](int64_t head, int64_t first, int64_t last) {
      const int64_t row = head * per_head_;
      add_weighted_bf16(bf16_values_of(head), {first, last}, queries_ + row, per_head_, scores_ + row * kSpan, cursor.next());
    });
  }

 private:
  static constexpr int64_t kAheadBytes = 8192;

  PrefetchCursor prefetch_cursor(const Pass& next) const {
    const int64_t steps = larger(kAheadBytes / (kAtOnce * span_.row_bytes()), 1);
    return {{span_, 0, heads_, seen_}, {span_, span_.to_value, heads_, seen_}, next, steps};
  }

  template <class Body>
  void each_step(Body body) const {
    for (int64_t first = seen_.first; first < seen_.last;) {
      const int64_t last = smaller((first / kAtOnce + 1) * kAtOnce, seen_.last);
      for (int64_t head = 0; head < heads_; ++head) body(head, first, last);
      first = last;
    }
  }

  Scattered values_of(int64_t head) const { return {span_.keys, span_.to_value + head * span_.to_head}; }
  Bf16Rows bf16_values_of(int64_t head) const { return {span_.keys, values_of(head).offset, span_.value_channels}; }

  // Calls `body` for each kGroup queries of a head: their number as a template argument, and the row of the first.
  template <class Body>
  void each_group(int64_t head, Body body) const {
    for (int64_t m = 0; m < per_head_; m += kGroup)
      with_count(smaller(kGroup, per_head_ - m), [&]<int M>() { body.template operator()<M>(head * per_head_ + m); });
  }

  template <DType D, bool kPart>
  void score(int64_t head, int64_t first, int64_t last, Prefetcher prefetch) {
    const int64_t to_head = head * span_.to_head;
    for (int64_t j = first / W * W; j < last; j += W, prefetch.at += W * span_.row_bytes())
      each_group(head, [&]<int M>(int64_t row) {
        const auto with = [&](auto keys) {
          score_rows<D, M, kPart>(queries_[row].q, span_.C, span_.width, keys, splat(scale_), scores_ + row * kSpan + j, prefetch);
        };
        if (span_.follow && j >= first && j + W <= last) with(Following{span_.keys[j] + to_head, span_.row_bytes()});
        else with(Scattered{span_.keys + j, to_head});
      });
  }

  template <DType D>
  void add_weighted(int64_t head, int64_t first, int64_t last, Prefetcher prefetch) {
    each_group(head, [&]<int M>(int64_t row) {
      const float* weights = scores_ + row * kSpan + first;
      const auto with = [&](auto values) { add_all_values<D, M>(weights, values, 0, last - first, span_.value_channels, queries_ + row, prefetch); };
      if (span_.follow) with(Following{values_of(head)[first], span_.row_bytes()});
      else with(Scattered{span_.keys + first, values_of(head).offset});
    });
  }

  const Span& span_;
  const Query* queries_;
  const int64_t heads_, per_head_;
  const float scale_, cap_;
  float* scores_;
  const Range seen_;
};

}  // namespace coterie::COTERIE_ISA
