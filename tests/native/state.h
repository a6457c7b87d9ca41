// States of two sequences for tests of gated delta nets and selective state spaces, which keep them in the same way.
#pragma once

#include "plain.h"

namespace testing {

// key_heads: key heads of a delta net, or groups of a state space.
// K, C: size of a head's matrix. taps: of the convolution.
struct Shape {
  int64_t key_heads, H, K, C, taps;
  int64_t channels() const { return 2 * key_heads * K + H * C; }
  int64_t unit_bytes() const { return 4 * K * C; }
  int64_t units() const {
    const int64_t each = K * C / (taps - 1);
    return H + (channels() + each - 1) / each;
  }
};

// The state of two sequences, in blocks of two units and a few spare bytes; the sequences' blocks alternate.
struct State {
  int64_t width, block_bytes;
  std::vector<i32> tables;
  std::vector<uint8_t> memory;

  explicit State(const Shape& s) : width((s.units() + 1) / 2), block_bytes(2 * s.unit_bytes() + 4) {
    for (i32 sequence = 0; sequence < 2; ++sequence)
      for (i32 block = 0; block < width; ++block) tables.push_back(2 * block + sequence);
    memory.resize(static_cast<size_t>(2 * width * block_bytes));
  }

  template <class Op>
  void operands(Op& op, const Shape& s, const std::vector<i32>& positions, const std::vector<i32>& sequence, int64_t first) {
    op.positions = positions.data(), op.sequence = sequence.data(), op.state_tables = tables.data(), op.table_width = width;
    op.kv = memory.data(), op.block_bytes = block_bytes, op.unit_bytes = s.unit_bytes(), op.first_unit = first;
    op.T = static_cast<int64_t>(positions.size()), op.B = 2;
  }
};

// A sequence's state, in double precision.
struct Plain {
  Doubles past, matrices;
};

// A token's channels after the convolution and the activation; `bias`: one per channel, or null.
inline Doubles convolved(const Shape& s, const Tensor& taps, const Tensor* bias, const float* x, bool begins, Plain& state) {
  const int64_t N = s.channels(), past = s.taps - 1;
  if (begins) state.past.assign(static_cast<size_t>(past * N), 0.0);
  Doubles window = state.past, y(static_cast<size_t>(N));
  window.insert(window.end(), x, x + N);
  for (int64_t n = 0; n < N; ++n) {
    double sum = bias ? (*bias)[n] : 0.0;
    for (int64_t tap = 0; tap < s.taps; ++tap) sum += window[tap * N + n] * taps[n * s.taps + tap];
    y[n] = silu(sum);
  }
  state.past.assign(window.begin() + N, window.end());
  return y;
}

}  // namespace testing
