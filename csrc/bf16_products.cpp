// Products of bfloat16 (bf16_products.h). A translation unit of its own, once per instruction set:
// kernels call it for a tile at a time.
// Knows nothing about ops or how work is shared out.
#include "bf16_products.h"

#include "bf16_products_isa.h"
#include "isa.h"
#include "pairs.h"

namespace coterie::COTERIE_ISA {

#if !defined(__AVX512F__)

void put_rounded(const float* x, int64_t K, int64_t token, int64_t tokens, bool many, float* out) {
  const auto round = [](V numbers) {
    float lanes[W];
    store(lanes, numbers);
    for (float& lane : lanes) lane = widen_bf16(narrow_bf16(lane));
    return load(lanes);
  };
  if (many) return interleave(x, K, 0, 1, out + token * rounded_stride(K), round);
  interleave(x, K, token, tokens, out, round);
}

#else

void put_rounded(const float* x, int64_t K, int64_t token, int64_t, bool, float* out) {
  auto* row = reinterpret_cast<uint16_t*>(out) + token * rounded_stride(K);
  const auto put = [&](int64_t k, V numbers) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + k), narrow(numbers)); };
  int64_t k = 0;
  for (; k + W <= K; k += W) put(k, load(x + k));
  if (k < K) put(k, load_part(x + k, K - k)), k += W;
  if (k % kStepColumns != 0) put(k, V{});
}

// Rounded tokens from some column on, `stride` numbers apart.
struct Tokens {
  const uint16_t* at;
  int64_t stride;
};

// acc[m * N + n] += the products of K columns. Prefetches what lies `ahead` bytes after these rows, unless 0.
template <bool kNative, int M, int N>
[[gnu::always_inline]] inline void add_columns(const Tokens& x, const Rows<N>& rows, int64_t K, int64_t ahead, V (&acc)[M * N]) {
  const Rows<N> at = rows;
  const auto step = [&](int64_t k, auto weights) __attribute__((always_inline)) {
    I xv[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) xv[m] = pin_in_register(_mm512_loadu_si512(x.at + m * x.stride + k));
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const I wv = pin_in_register(weights(at.at[n] + 2 * k));
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) add_pairs<kNative>(xv[m], wv, acc[m * N + n]);
    }
  };
  int64_t k = 0;
  for (; k + kStepColumns <= K; k += kStepColumns) {
    if (ahead != 0)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) fetch_ahead(at.at[n] + ahead + 2 * k);
    step(k, [](bytes* from) { return _mm512_loadu_si512(from); });
  }
  if (k == K) return;
  const auto some = static_cast<__mmask32>((uint32_t{1} << (K - k)) - 1);  // never reads past a row's end
  step(k, [some](bytes* from) { return _mm512_maskz_loadu_epi16(some, from); });
}

// Rows for few tokens, for streams.h.
template <bool kNative>
struct Bf16StreamRows {
  using Number = uint16_t;
  static int64_t row_bytes(int64_t K) { return 2 * K; }
  static int64_t token_numbers(int64_t K) { return rounded_stride(K); }

  template <int M, int N>
  [[gnu::noinline]] static void dots(const uint16_t* x, const Rows<N>& rows, int64_t K, float* out, int64_t out_stride, int64_t out_step,
                                     int64_t ahead) {
    V acc[M * N];
#pragma GCC unroll 16
    for (int i = 0; i < M * N; ++i) acc[i] = V{};
    add_columns<kNative, M, N>({x, rounded_stride(K)}, rows, K, ahead, acc);
    put_sums<M, N>(acc, out, out_stride, out_step);
  }
};

// For more tokens. Long rows are divided into blocks of columns, so that kGroupRows rows and a group of tokens stay in
// the L1 cache. Rows of up to `limit` columns are one block: keeping partial sums of many tokens in memory costs more
// than reading rows from the L2 cache.
constexpr int64_t kBf16Columns = 2 * kBlockColumns, kOneBlockColumns = 2048;
constexpr int64_t bf16_block_columns(int64_t K, int64_t limit) {
  const int64_t blocks = K <= limit ? 1 : tiles(K, kBf16Columns);
  return tiles(tiles(K, blocks), kStepColumns) * kStepColumns;
}

// A block of columns, and where its results go. Between blocks partial sums are kept in memory, as in panel.h.
struct Bf16Block {
  bool first, last;
  int64_t out_stride;
};

template <int M>
[[gnu::always_inline]] inline void begin_sums(const Bf16Block& b, const float* sums, V (&acc)[M * kGroupRows]) {
#pragma GCC unroll 32
  for (int i = 0; i < M * kGroupRows; ++i) acc[i] = b.first ? V{} : load(sums + i * W);
}

// Stores the first `left` of kGroupRows rows.
template <int M>
[[gnu::always_inline]] inline void end_sums(const Bf16Block& b, const V (&acc)[M * kGroupRows], float* sums, int64_t left, float* out) {
  constexpr int N = kGroupRows;
  if (!b.last) {
#pragma GCC unroll 32
    for (int i = 0; i < M * N; ++i) store(sums + i * W, acc[i]);
    return;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    float four[N];
    float* at = left < N ? four : out + m * b.out_stride;
    sum4(acc[m * N], acc[m * N + 1], acc[m * N + 2], acc[m * N + 3], at);
    if (left < N)
      for (int64_t n = 0; n < left; ++n) out[m * b.out_stride + n] = four[n];
  }
}

// Calls `body` with the number of tokens of a group as a template argument.
template <class Body>
inline void with_tokens(int64_t tokens, Body body) {
  switch (tokens) {
    case 1: return body.template operator()<1>();
    case 2: return body.template operator()<2>();
    case 3: return body.template operator()<3>();
    case 4: return body.template operator()<4>();
    case 5: return body.template operator()<5>();
    default: return body.template operator()<kGroupTokens>();
  }
}

// Columns of kBlockRows rows, copied once for all tokens of a tile: rows of a file have any alignment,
// and a load that crosses a cache line costs two.
//
//   panel   32 columns of row 0 | of 1 | of 2 | of 3 | the next 32 of row 0 ..      then rows 4 to 7
struct Bf16Panel {
  uint16_t* at;
  int64_t rows, steps;
};

constexpr int64_t kGroupNumbers = kGroupRows * kStepColumns;

inline void fill_panel(const Bf16Panel& panel, bytes* w, int64_t row_bytes, int64_t columns) {
  const int64_t whole = columns / kStepColumns;
  const auto some = static_cast<__mmask32>((uint64_t{1} << columns % kStepColumns) - 1);  // never reads past a row's end
  for (int64_t n = 0; n < tiles(panel.rows, kGroupRows) * kGroupRows; ++n) {
    bytes* row = w + smaller(n, panel.rows - 1) * row_bytes;  // a missing row is computed and discarded
    uint16_t* out = panel.at + n / kGroupRows * panel.steps * kGroupNumbers + n % kGroupRows * kStepColumns;
    for (int64_t step = 0; step < whole; ++step, row += 2 * kStepColumns, out += kGroupNumbers) _mm512_store_si512(out, _mm512_loadu_si512(row));
    if (whole < panel.steps) _mm512_store_si512(out, _mm512_maskz_loadu_epi16(some, row));
  }
}

// M tokens times all rows of a panel.
template <bool kNative, int M>
[[gnu::noinline]] void panel_bf16(const Bf16Block& b, const Tokens& x, const Bf16Panel& panel, int64_t together, float* sums, float* out,
                                    NextBlock& next_block) {
  constexpr int N = kGroupRows;
  const uint16_t* w = panel.at;
  for (int64_t n = 0; n < panel.rows; n += N, out += N, sums += together * N * W) {
    next_block.one_call();
    V acc[M * N];
    begin_sums<M>(b, sums, acc);
    const uint16_t* at = x.at;
    for (const uint16_t* end = w + panel.steps * kGroupNumbers; w != end; w += kGroupNumbers, at += kStepColumns) {
      I xv[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) xv[m] = pin_in_register(_mm512_loadu_si512(at + m * x.stride));
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        const I wv = pin_in_register(_mm512_load_si512(w + i * kStepColumns));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) add_pairs<kNative>(xv[m], wv, acc[m * N + i]);
      }
    }
    end_sums<M>(b, acc, sums, panel.rows - n, out);
  }
}

// Columns [first, first + columns) of rows [row, row + rows), which begin at `w`;
// tokens are processed `together` at a time.
struct Part {
  Bf16Block block;
  bytes* w;
  int64_t row, rows, first, columns, together;
};

// Calls `body` with each block, and with what prefetches the next one meanwhile.
template <class Body>
inline void each_block(int64_t tokens, bytes* w, int64_t N, int64_t K, int64_t columns, int64_t out_stride, Body body) {
  const int64_t row_bytes = 2 * K, groups = tiles(tokens, kGroupTokens), together = tiles(tokens, groups);
  for (int64_t row = 0; row < N; row += kBlockRows) {
    const int64_t rows = smaller(kBlockRows, N - row);
    for (int64_t k = 0; k < K; k += columns) {
      const bool last = k + columns >= K;
      bytes* next = w + (last ? (row + rows) * row_bytes : row * row_bytes + 2 * (k + columns));
      const int64_t next_columns = last ? columns : smaller(columns, K - k - columns);
      NextBlock next_block(next, row_bytes, rows, 2 * next_columns, tiles(rows, kGroupRows) * groups);
      const Bf16Block block{k == 0, last, out_stride};
      body(Part{block, w + row * row_bytes + 2 * k, row, rows, k, smaller(columns, K - k), together}, next_block);
    }
  }
}

template <bool kNative>
[[gnu::noinline]] void many_tokens_bf16(const uint16_t* x, int64_t tokens, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride, float* sums) {
  alignas(64) static thread_local uint16_t copied[kBlockRows * kOneBlockColumns];  // too large for some systems' stacks
  const int64_t stride = rounded_stride(K);
  each_block(tokens, w, N, K, bf16_block_columns(K, kOneBlockColumns), out_stride, [&](const Part& part, NextBlock& next_block) {
    const Bf16Panel panel{copied, part.rows, tiles(part.columns, kStepColumns)};
    fill_panel(panel, part.w, 2 * K, part.columns);
    for (int64_t t = 0; t < tokens; t += part.together)
      with_tokens(smaller(part.together, tokens - t), [&]<int M>() {
        panel_bf16<kNative, M>(part.block, {x + t * stride + part.first, stride}, panel, part.together, sums + t * kBlockRows * W,
                                 out + t * out_stride + part.row, next_block);
      });
  });
}

// M tokens times kGroupRows rows in place.
template <bool kNative, int M>
[[gnu::noinline]] void bf16_group(const Bf16Block& b, const Tokens& x, const Rows<kGroupRows>& rows, int64_t columns, int64_t left, float* sums,
                                  float* out) {
  V acc[M * kGroupRows];
  begin_sums<M>(b, sums, acc);
  add_columns<kNative, M, kGroupRows>(x, rows, columns, 0, acc);
  end_sums<M>(b, acc, sums, left, out);
}

// Too few tokens for a panel, and too many for streams.
template <bool kNative>
[[gnu::noinline]] void several_tokens_bf16(const uint16_t* x, int64_t tokens, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride) {
  alignas(64) float sums[tiles(16, kGroupTokens) * kGroupTokens * kBlockRows * W];
  const int64_t stride = rounded_stride(K);
  each_block(tokens, w, N, K, bf16_block_columns(K, kBf16Columns), out_stride, [&](const Part& part, NextBlock& next_block) {
    for (int64_t t = 0; t < tokens; t += part.together)
      for (int64_t n = 0; n < part.rows; n += kGroupRows) {
        next_block.one_call();
        Rows<kGroupRows> rows;
        for (int64_t i = 0; i < kGroupRows; ++i) rows.at[i] = part.w + smaller(n + i, part.rows - 1) * 2 * K;  // a missing row is computed and discarded
        with_tokens(smaller(part.together, tokens - t), [&]<int M>() {
          bf16_group<kNative, M>(part.block, {x + t * stride + part.first, stride}, rows, part.columns, part.rows - n,
                                 sums + (t * kBlockRows + n * part.together) * W, out + t * out_stride + part.row + n);
        });
      }
  });
}

constexpr int64_t kStreamedTokens = 4;  // above it neighbouring rows are faster than streams

void bf16_tile(bool native, const float* rounded, int64_t tokens, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride, float* sums) {
  const Flushed flushed;
  const auto* x = reinterpret_cast<const uint16_t*>(rounded);
  const auto run = [&]<bool kNative>() {
    if (sums != nullptr) return many_tokens_bf16<kNative>(x, tokens, w, N, K, out, out_stride, sums);
    if (tokens > kStreamedTokens) return several_tokens_bf16<kNative>(x, tokens, w, N, K, out, out_stride);
    dots_streamed<Bf16StreamRows<kNative>, 4>(x, tokens, w, N, K, out, out_stride);
  };
  if (native) return run.template operator()<true>();
  run.template operator()<false>();
}

void bf16_tile(const float* rounded, int64_t tokens, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride, float* sums) {
  bf16_tile(has_bf16_products(), rounded, tokens, w, N, K, out, out_stride, sums);
}

void bf16_along(const float* rounded, int64_t tokens, const Rows<4>& rows, int64_t each, int64_t K, float* out, int64_t out_stride,
                  int64_t out_step) {
  if (tokens > kStreamedTokens) {
    for (int n = 0; n < 4; ++n) bf16_tile(rounded, tokens, rows.at[n], each, K, out + n * out_step, out_stride, nullptr);
    return;
  }
  const Flushed flushed;
  const auto* x = reinterpret_cast<const uint16_t*>(rounded);
  if (has_bf16_products()) return dots_along<Bf16StreamRows<true>, 4>(x, tokens, rows, each, K, out, out_stride, out_step);
  dots_along<Bf16StreamRows<false>, 4>(x, tokens, rows, each, K, out, out_stride, out_step);
}

#endif

}  // namespace coterie::COTERIE_ISA
