// Ops of gated delta nets and of gated attention, on odd shapes, compared with plain loops: two steps of two sequences.
#include "state.h"

namespace testing {

namespace {

struct Layer {
  Tensor taps, a_log, dt_bias, norm;
};

double length(const float* x, int64_t K) {
  double squares = 1e-6;
  for (int64_t k = 0; k < K; ++k) squares += static_cast<double>(x[k]) * x[k];
  return std::sqrt(squares);
}

Doubles recurred(const Shape& s, const Layer& layer, const float* x, const float* a, const float* b, bool begins, Plain& state) {
  const auto [key_heads, H, K, C, taps] = s;
  if (begins) state.matrices.assign(static_cast<size_t>(H * K * C), 0.0);
  Doubles y(static_cast<size_t>(H * C));
  for (int64_t h = 0; h < H; ++h) {
    const float *q = x + h / (H / key_heads) * K, *k = q + key_heads * K, *v = x + 2 * key_heads * K + h * C;
    const double decay = std::exp(-std::exp(layer.a_log[h]) * std::log1p(std::exp(a[h] + layer.dt_bias[h])));
    const double beta = 1 / (1 + std::exp(-b[h])), q_length = length(q, K) * std::sqrt(K), k_length = length(k, K);
    double* matrix = state.matrices.data() + h * K * C;
    for (int64_t c = 0; c < C; ++c) {
      double known = 0;
      for (int64_t i = 0; i < K; ++i) known += k[i] / k_length * (matrix[i * C + c] *= decay);
      for (int64_t i = 0; i < K; ++i) {
        matrix[i * C + c] += k[i] / k_length * (v[c] - known) * beta;
        y[h * C + c] += q[i] / q_length * matrix[i * C + c];
      }
    }
  }
  return y;
}

void test_net(const Shape& s, DType dtype) {
  const auto [key_heads, H, K, C, taps] = s;
  const int64_t N = s.channels();
  const Layer layer{weight(N, taps, dtype), weight(H, 1, dtype), weight(H, 1, dtype), norm_weight(C, dtype)};
  const std::vector<i32> sequence[2] = {{0, 0, 0, 1, 1}, {1, 0, 0, 0, 0}}, positions[2] = {{0, 1, 2, 0, 1}, {2, 3, 4, 5, 6}};
  State state(s);
  std::vector<Row> rows;
  std::vector<float> x[2], a[2], b[2], z[2], mixed[2], y[2], gated[2];
  std::vector<Output> outputs = {output(state.memory)};
  for (int step = 0; step < 2; ++step) {
    const auto T = static_cast<int64_t>(positions[step].size());
    x[step] = random_floats(T * N), a[step] = random_floats(T * H), b[step] = random_floats(T * H), z[step] = random_floats(T * H * C);
    mixed[step].resize(x[step].size()), y[step].resize(z[step].size()), gated[step].resize(z[step].size());
    CausalConv conv{};
    state.operands(conv, s, positions[step], sequence[step], H);
    conv.x = x[step].data(), conv.weight = layer.taps.at(), conv.weight_dtype = layer.taps.type(), conv.y = mixed[step].data();
    conv.N = N, conv.taps = taps;
    rows.push_back(row_of(Opcode::causal_conv, conv));
    const auto net = [&](auto op, float* out) {
      state.operands(op, s, positions[step], sequence[step], 0);
      op.x = mixed[step].data(), op.a = a[step].data(), op.b = b[step].data(), op.y = out;
      op.a_log = layer.a_log.at(), op.a_log_dtype = layer.a_log.type();
      op.dt_bias = layer.dt_bias.at(), op.dt_bias_dtype = layer.dt_bias.type();
      op.key_heads = key_heads, op.H = H, op.K = K, op.C = C;
      return op;
    };
    if (step == 0) {
      rows.push_back(row_of(Opcode::gated_delta, net(GatedDelta{}, y[step].data())));
      outputs.push_back(output(y[step]));
    } else {
      GatedDeltaNorm op = net(GatedDeltaNorm{}, gated[step].data());
      op.norm = layer.norm.at(), op.norm_dtype = layer.norm.type(), op.eps = 1e-6, op.z = z[step].data();
      rows.push_back(row_of(Opcode::gated_delta_norm, op));
      outputs.push_back(output(gated[step]));
    }
    outputs.push_back(output(mixed[step]));
  }
  everywhere("gated delta nets", rows, outputs, [&] {
    Plain plain[2];
    bool right = true;
    for (int step = 0; step < 2; ++step) {
      Doubles convolutions, results;
      for (size_t t = 0; t < positions[step].size(); ++t) {
        Plain& own = plain[sequence[step][t]];
        const bool begins = positions[step][t] == 0;
        const Doubles one = convolved(s, layer.taps, nullptr, x[step].data() + t * N, begins, own);
        const Doubles out = recurred(s, layer, mixed[step].data() + t * N, a[step].data() + t * H, b[step].data() + t * H, begins, own);
        convolutions.insert(convolutions.end(), one.begin(), one.end());
        results.insert(results.end(), out.begin(), out.end());
      }
      right = right && close(mixed[step], convolutions, 1e-5);
      if (step == 0) {
        right = right && close(y[step], results, 1e-4);
        continue;
      }
      Doubles wanted = norm(results, layer.norm, C, 1e-6);
      for (size_t i = 0; i < wanted.size(); ++i) wanted[i] *= silu(z[step][i]);
      right = right && close(gated[step], wanted, 1e-3);
    }
    return right;
  });
}

void test_gates(int64_t T, int64_t H, int64_t C) {
  const std::vector<float> both = random_floats(T * H * 2 * C), a = random_floats(T * H * C);
  std::vector<float> opened(a.size()), gated(a.size());
  const Sigmoid op{both.data(), opened.data(), T, H * C, C, C, 2 * C};
  const SigmoidMul mul{both.data(), gated.data(), T, H * C, C, C, 2 * C, a.data()};
  everywhere("gates", {row_of(Opcode::sigmoid, op), row_of(Opcode::sigmoid_mul, mul)}, {output(opened), output(gated)}, [&] {
    Doubles gates, products;
    for (int64_t row = 0; row < T * H; ++row)
      for (int64_t c = 0; c < C; ++c) {
        gates.push_back(1 / (1 + std::exp(-both[(2 * row + 1) * C + c])));
        products.push_back(gates.back() * a[row * C + c]);
      }
    return close(opened, gates, 1e-6) && close(gated, products, 1e-6);
  });
}

}  // namespace

void test_gated_delta() {
  const Shape shapes[] = {{1, 1, 1, 1, 2}, {2, 2, 8, 32, 4}, {1, 3, 5, 37, 3}, {2, 4, 33, 64, 4}};
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (const Shape& shape : shapes) test_net(shape, dtype);
  test_gates(0, 2, 4), test_gates(1, 1, 1), test_gates(3, 2, 20), test_gates(40, 8, 256);
}

}  // namespace testing
