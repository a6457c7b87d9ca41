// The recurrence of a selective state space (Mamba-2), one head of one sequence at a time, token by token, so that a
// token's bits do not depend on the batch. A head's matrix is laid out as in gated_delta.h.
// Source: Dao, Gu 2024, Transformers are SSMs (arXiv 2405.21060), section 7, where A is one number per head.
// Knows nothing about what becomes of the results.
#pragma once

#include "gated_delta.h"

namespace coterie::COTERIE_ISA {

// A token's inputs to a head: the decay of the matrix, and the K numbers that
// write it and read it (B and C in the paper).
struct ScanToken {
  float decay;
  const float *write, *read;
};

// One token and one chunk of kColumns: S = decay * S + write x, y += read S.
// `x` is the input times the token's step size.
inline void scan_step(const ScanToken& token, const float* x, int64_t K, float* S, float* y) {
  V sums[kRowsAtOnce][kVectors] = {}, in[kVectors];
  const V decay = splat(token.decay);
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) in[i] = load(x + i * W);
  int64_t k = 0;
  const auto row = [&](int64_t at, V* out) {
    const V write = splat(token.write[at]), read = splat(token.read[at]);
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      const V now = fma(write, in[i], decay * load(S + at * kColumns + i * W));
      store(S + at * kColumns + i * W, now);
      out[i] = fma(read, now, out[i]);
    }
  };
  for (; k + kRowsAtOnce <= K; k += kRowsAtOnce)
#pragma GCC unroll 8
    for (int r = 0; r < kRowsAtOnce; ++r) row(k + r, sums[r]);
  for (; k < K; ++k) row(k, sums[0]);
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    V all = sums[0][i];
    for (int r = 1; r < kRowsAtOnce; ++r) all = all + sums[r][i];
    store(y + i * W, load(y + i * W) + all);
  }
}

template <class Op>
constexpr int64_t scan_scratch(const Op& op) {
  return 2 * bytes_of(kDeltaTokens * wide_columns(op.C)) + bytes_of(op.K * kColumns);
}

template <class Op>
constexpr int64_t scan_flops(const Op& op) {
  return 5 * op.T * op.H * op.K * op.C;
}

// All tokens of one sequence for one head; `put` receives each token's index and its C results.
template <class Op, class Put>
inline void scan_head(const Op& op, int64_t sequence, int64_t head, Scratch& scratch, Put put) {
  const int64_t K = op.K, C = op.C, wide = wide_columns(C), inner = op.H * C, N = inner + 2 * op.groups * K;
  const int64_t group = head / (op.H / op.groups);
  float* in = scratch.floats(kDeltaTokens * wide);
  float* out = scratch.floats(kDeltaTokens * wide);
  float* spread = scratch.floats(K * kColumns);
  float* matrix = state_unit(op, sequence, head);
  const auto of_head = [&](bytes* numbers, int64_t dtype) { return widen_number(numbers + head * size_of(dtype), dtype); };
  const float rate = std::exp(of_head(op.a_log, op.a_log_dtype)), bias = of_head(op.dt_bias, op.dt_bias_dtype);
  const float skip = of_head(op.skip, op.skip_dtype);
  const float least = static_cast<float>(op.least), most = static_cast<float>(op.most);
  each_tokens<kDeltaTokens>(op, sequence, [&](const int64_t* tokens, int64_t count) {
    ScanToken brought[kDeltaTokens];
    for (int64_t i = 0; i < count; ++i) {
      const float *x = op.x + tokens[i] * N, *write = x + inner + group * K, *own = x + head * C;
      const float opened = softplus(op.dt[tokens[i] * op.H + head] + bias);
      const float step = opened < least ? least : opened > most ? most : opened;
      float *v = in + i * wide, *y = out + i * wide;
      std::memset(v + C, 0, static_cast<size_t>(wide - C) * sizeof(float));
      std::memset(y + C, 0, static_cast<size_t>(wide - C) * sizeof(float));
      for (int64_t c = 0; c < C; ++c) v[c] = own[c] * step, y[c] = own[c] * skip;
      brought[i] = {std::exp(-rate * step), write, write + op.groups * K};
    }
    for (int64_t column = 0; column < C; column += kColumns) {
      const Chunk chunk{matrix + column * K, K, smaller(kColumns, C - column), spread};
      chunk.open();
      for (int64_t i = 0; i < count; ++i) {
        float* S = chunk.matrix();
        if (op.positions[tokens[i]] == 0) std::memset(S, 0, static_cast<size_t>(K * kColumns) * sizeof(float));
        scan_step(brought[i], in + i * wide + column, K, S, out + i * wide + column);
      }
      chunk.close();
    }
    for (int64_t i = 0; i < count; ++i) put(tokens[i], out + i * wide);
  });
  scratch.stored(K * C * 4);
}

}  // namespace coterie::COTERIE_ISA
