// The recurrence of a gated delta net, one value head of one sequence at a time, token by token,
// so that a token's bits do not depend on the batch.
// Source: Yang, Kautz, Hatamizadeh 2024, Gated Delta Networks (arXiv 2412.06464), equation 10.
// Knows nothing about what becomes of the results.
//
//   a head's matrix   [columns in chunks of kColumns][key channels][columns of the chunk]
//   a tile of tokens  processes the chunks one by one, each of which stays in the L1 cache meanwhile
#pragma once

#include <cmath>

#include "op.h"
#include "state.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kColumns = 32;                                        // columns of a chunk, at most
constexpr int kVectors = kColumns / W;                                  // vectors of a chunk's row
constexpr int kRowsAtOnce = kVectors < 8 ? 8 / kVectors : 1;            // rows with accumulators of their own, to keep the units busy
constexpr int64_t kDeltaTokens = 16;                                    // tokens per tile

// A token's inputs to a head: normalised q and k, v, and its two gates.
struct DeltaToken {
  float decay, beta;
  const float *q, *k, *v;
};

// With PyTorch's threshold: above 20, exp(-x) is lost in rounding. elementwise.cpp rounds differently for x in (0, 20].
inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }
inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// y = x * scale / sqrt(|x|^2 + 1e-6) over K channels.
inline void unit_row(const float* x, int64_t K, float scale, float* y) {
  V squares{};
  int64_t i = 0;
  for (; i + W <= K; i += W) squares = fma(load(x + i), load(x + i), squares);
  if (i < K) squares = fma(load_part(x + i, K - i), load_part(x + i, K - i), squares);
  const V factor = splat(scale / __builtin_sqrtf(sum(squares) + 1e-6f));
  for (i = 0; i + W <= K; i += W) store(y + i, load(x + i) * factor);
  if (i < K) store_part(y + i, load_part(x + i, K - i) * factor, K - i);
}

// One token and one chunk of kColumns: S = decay * S, S += k (beta * (v - k S)), y = q S.
inline void delta_step(const DeltaToken& token, const float* v, int64_t K, float* S, float* y) {
  V sums[kRowsAtOnce][kVectors] = {};
  int64_t k = 0;
  for (; k + kRowsAtOnce <= K; k += kRowsAtOnce)
#pragma GCC unroll 8
    for (int row = 0; row < kRowsAtOnce; ++row) {
      const V key = splat(token.k[k + row]);
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) sums[row][i] = fma(load(S + (k + row) * kColumns + i * W), key, sums[row][i]);
    }
  for (; k < K; ++k)
    for (int i = 0; i < kVectors; ++i) sums[0][i] = fma(load(S + k * kColumns + i * W), splat(token.k[k]), sums[0][i]);
  const V decay = splat(token.decay), beta = splat(token.beta);
  V change[kVectors], out[kVectors] = {};
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    V known = sums[0][i];
    for (int row = 1; row < kRowsAtOnce; ++row) known = known + sums[row][i];
    change[i] = (load(v + i * W) - decay * known) * beta;
  }
  for (k = 0; k < K; ++k) {
    const V key = splat(token.k[k]), query = splat(token.q[k]);
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      const V now = fma(key, change[i], decay * load(S + k * kColumns + i * W));
      store(S + k * kColumns + i * W, now);
      out[i] = fma(query, now, out[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) store(y + i * W, out[i]);
}

// A chunk of fewer columns is zero-padded while a tile is processed.
struct Chunk {
  float* at;
  int64_t K, width;
  float* wide;  // of kColumns columns
  void open() const {
    if (width == kColumns) return;
    std::memset(wide, 0, static_cast<size_t>(K * kColumns) * sizeof(float));
    for (int64_t k = 0; k < K; ++k) std::memcpy(wide + k * kColumns, at + k * width, static_cast<size_t>(width) * sizeof(float));
  }
  void close() const {
    if (width == kColumns) return;
    for (int64_t k = 0; k < K; ++k) std::memcpy(at + k * width, wide + k * kColumns, static_cast<size_t>(width) * sizeof(float));
  }
  float* matrix() const { return width == kColumns ? at : wide; }
};

constexpr int64_t wide_columns(int64_t C) { return tiles(C, kColumns) * kColumns; }

template <class Op>
constexpr int64_t delta_scratch(const Op& op) {
  return bytes_of(kDeltaTokens * 2 * op.K) + 2 * bytes_of(kDeltaTokens * wide_columns(op.C)) + bytes_of(op.K * kColumns);
}

template <class Op>
constexpr int64_t delta_flops(const Op& op) {
  return 7 * op.T * op.H * op.K * op.C;
}

// All tokens of one sequence for one value head; `put` receives each token's index and its C results.
template <class Op, class Put>
inline void delta_head(const Op& op, int64_t sequence, int64_t head, Scratch& scratch, Put put) {
  const int64_t K = op.K, C = op.C, wide = wide_columns(C), N = 2 * op.key_heads * K + op.H * C;
  const int64_t key_head = head / (op.H / op.key_heads);
  float* unit = scratch.floats(kDeltaTokens * 2 * K);
  float* values = scratch.floats(kDeltaTokens * wide);
  float* out = scratch.floats(kDeltaTokens * wide);
  float* spread = scratch.floats(K * kColumns);
  float* matrix = state_unit(op, sequence, head);
  float rate = 0, bias = 0;
  with_dtype(op.a_log_dtype, [&]<DType D>() { rate = std::exp(widen<D>(op.a_log + head * size_of(op.a_log_dtype))); });
  with_dtype(op.dt_bias_dtype, [&]<DType D>() { bias = widen<D>(op.dt_bias + head * size_of(op.dt_bias_dtype)); });
  each_tokens<kDeltaTokens>(op, sequence, [&](const int64_t* tokens, int64_t count) {
    DeltaToken brought[kDeltaTokens];
    for (int64_t i = 0; i < count; ++i) {
      const float* x = op.x + tokens[i] * N;
      float *q = unit + i * 2 * K, *k = q + K, *v = values + i * wide;
      unit_row(x + key_head * K, K, 1.0f / __builtin_sqrtf(static_cast<float>(K)), q);
      unit_row(x + (op.key_heads + key_head) * K, K, 1.0f, k);
      std::memset(v, 0, static_cast<size_t>(wide) * sizeof(float));
      std::memcpy(v, x + 2 * op.key_heads * K + head * C, static_cast<size_t>(C) * sizeof(float));
      const int64_t gate = tokens[i] * op.H + head;
      brought[i] = {std::exp(-rate * softplus(op.a[gate] + bias)), sigmoid(op.b[gate]), q, k, v};
    }
    for (int64_t column = 0; column < C; column += kColumns) {
      const Chunk chunk{matrix + column * K, K, smaller(kColumns, C - column), spread};
      chunk.open();
      for (int64_t i = 0; i < count; ++i) {
        float* S = chunk.matrix();
        if (op.positions[tokens[i]] == 0) std::memset(S, 0, static_cast<size_t>(K * kColumns) * sizeof(float));
        delta_step(brought[i], brought[i].v + column, K, S, out + i * wide + column);
      }
      chunk.close();
    }
    for (int64_t i = 0; i < count; ++i) put(tokens[i], out + i * wide);
  });
  scratch.stored(K * C * 4);
}

}  // namespace coterie::COTERIE_ISA
