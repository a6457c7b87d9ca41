// The ops again, as plain loops in double precision, for comparison. Matrices are row-major.
#pragma once

#include "testing.h"

namespace testing {

using Doubles = std::vector<double>;

inline Doubles widened(const std::vector<float>& x) { return Doubles(x.begin(), x.end()); }

inline Doubles norm(const Doubles& x, const Tensor& w, int64_t C, double eps, double offset = 0.0) {
  Doubles y(x.size());
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(C)) {
    double squares = 0;
    for (int64_t c = 0; c < C; ++c) squares += x[row + c] * x[row + c];
    for (int64_t c = 0; c < C; ++c) y[row + c] = x[row + c] / std::sqrt(squares / static_cast<double>(C) + eps) * (w[c] + offset);
  }
  return y;
}

inline Doubles layer_norm(const Doubles& x, const Tensor& w, const Tensor& bias, int64_t C, double eps) {
  Doubles y(x.size());
  const double count = static_cast<double>(C);
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(C)) {
    double mean = 0, squares = 0;
    for (int64_t c = 0; c < C; ++c) mean += x[row + c] / count;
    for (int64_t c = 0; c < C; ++c) squares += (x[row + c] - mean) * (x[row + c] - mean);
    const double deviation = std::sqrt(squares / count + eps);
    for (int64_t c = 0; c < C; ++c) y[row + c] = (x[row + c] - mean) / deviation * w[c] + (bias.values.empty() ? 0.0 : bias[c]);
  }
  return y;
}

inline Doubles linear(const Doubles& x, const Tensor& w, const Tensor& bias, int64_t T, int64_t N, int64_t K) {
  Doubles y(static_cast<size_t>(T * N));
  for (int64_t t = 0; t < T; ++t)
    for (int64_t n = 0; n < N; ++n) {
      double sum = bias.values.empty() ? 0.0 : bias[n];
      for (int64_t k = 0; k < K; ++k) sum += x[t * K + k] * w[n * K + k];
      y[t * N + n] = sum;
    }
  return y;
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }

// The forms of the instruction: Phi by erf, or approximated by tanh or by sigmoid.
inline double gelu(double x, int64_t form) {
  if (form == 0) return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
  if (form == 1) return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
  return x / (1 + std::exp(-1.702 * x));
}

// Pairs of channels are neighbours, or half of the rotated channels apart.
inline Doubles rope(const Doubles& x, const std::vector<i32>& positions, const std::vector<float>& inv_freq, int64_t H, int64_t C,
                    double scale, bool interleaved = false) {
  Doubles y = x;
  const int64_t half = static_cast<int64_t>(inv_freq.size()), apart = interleaved ? 1 : half;
  for (size_t t = 0; t < positions.size(); ++t)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<float>(positions[t]) * inv_freq[i];  // rounded to float, as the kernels do
        const size_t at = (t * H + h) * C + (interleaved ? 2 * i : i);
        y[at] = (x[at] * std::cos(angle) - x[at + apart] * std::sin(angle)) * scale;
        y[at + apart] = (x[at + apart] * std::cos(angle) + x[at] * std::sin(angle)) * scale;
      }
  return y;
}

// Pages of float32, so that storing loses nothing. The blocks of a sequence are scattered.
struct Pages {
  int64_t B, width, Z, K, C, layers, block_bytes;
  std::vector<i32> tables;
  std::vector<uint8_t> memory;

  Pages(int64_t B, int64_t context, int64_t Z, int64_t K, int64_t C, int64_t layers)
      : B(B), width((context + Z - 1) / Z), Z(Z), K(K), C(C), layers(layers), block_bytes(layers * 2 * K * Z * C * 4 + 12) {
    for (int64_t i = 0; i < B * width; ++i) tables.push_back(static_cast<i32>((i * 7 + 3) % (B * width)));
    if (B * width % 7 == 0)
      for (int64_t i = 0; i < B * width; ++i) tables[i] = static_cast<i32>(i);
    memory.resize(static_cast<size_t>(B * width * block_bytes));
  }

  float* at(int64_t sequence, int64_t position, int64_t part, int64_t head, int64_t layer) {
    const int64_t block = tables[sequence * width + position / Z];
    return reinterpret_cast<float*>(memory.data() + block * block_bytes) + (((layer * 2 + part) * K + head) * Z + position % Z) * C;
  }

  template <class Op>
  void operands(Op& op, const std::vector<i32>& positions, const std::vector<i32>& sequence, int64_t layer) {
    op.positions = positions.data(), op.sequence = sequence.data(), op.block_tables = tables.data(), op.table_width = width;
    op.kv = memory.data(), op.kv_dtype = 0, op.block_bytes = block_bytes, op.Z = Z, op.layer = layer;
    op.K = K, op.C = C;
  }
};

inline Doubles attention(const std::vector<float>& q, Pages& pages, const std::vector<i32>& positions, const std::vector<i32>& sequence,
                         int64_t H, int64_t layer, double scale, int64_t window, const float* sinks = nullptr,
                         const std::function<double(int64_t head, int64_t offset)>& bias = {}) {
  Doubles y(q.size());
  const int64_t C = pages.C, group = H / pages.K;
  for (size_t t = 0; t < positions.size(); ++t)
    for (int64_t h = 0; h < H; ++h) {
      const float* query = q.data() + (t * H + h) * C;
      int64_t own = positions[t];  // a bidirectional window: `positions` has the last position of its text
      for (size_t later = t + 1; window < 0 && later < positions.size() && sequence[later] == sequence[t]; ++later) --own;
      const int64_t first = window != 0 ? std::max<int64_t>(0, own - std::abs(window) + 1) : 0;
      const int64_t last = window < 0 ? std::min<int64_t>(positions[t], own - window - 1) : positions[t];
      Doubles weights;
      double highest = -1e300, total = 0;
      for (int64_t p = first; p <= last; ++p) {
        const float* key = pages.at(sequence[t], p, 0, h / group, layer);
        double score = 0;
        for (int64_t c = 0; c < C; ++c) score += static_cast<double>(query[c]) * key[c];
        weights.push_back(score * scale + (bias ? bias(h, p - own) : 0.0));
        highest = std::max(highest, weights.back());
      }
      for (double& weight : weights) total += weight = std::exp(weight - highest);
      if (sinks != nullptr) total += std::exp(sinks[h] - highest);
      for (int64_t p = first; p <= last; ++p) {
        const float* value = pages.at(sequence[t], p, 1, h / group, layer);
        for (int64_t c = 0; c < C; ++c) y[(t * H + h) * C + c] += weights[p - first] / total * value[c];
      }
    }
  return y;
}

inline std::vector<float> frequencies(int64_t half) {
  std::vector<float> inv_freq;
  for (int64_t i = 0; i < half; ++i) inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(half)));
  return inv_freq;
}

}  // namespace testing
