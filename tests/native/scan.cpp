// Ops of selective state spaces, on odd shapes, compared with plain loops:
// two steps of two sequences; norms in groups, rows of factors.
#include <algorithm>

#include "state.h"

namespace testing {

namespace {

struct Layer {
  Tensor taps, bias, a_log, dt_bias, skip;
  double least, most;
};

Doubles scanned(const Shape& s, const Layer& layer, const float* x, const float* dt, bool begins, Plain& state) {
  const auto [groups, H, K, C, taps] = s;
  if (begins) state.matrices.assign(static_cast<size_t>(H * K * C), 0.0);
  Doubles y(static_cast<size_t>(H * C));
  for (int64_t h = 0; h < H; ++h) {
    const float *write = x + H * C + h / (H / groups) * K, *read = write + groups * K;
    const double step = std::clamp(std::log1p(std::exp(static_cast<double>(dt[h]) + layer.dt_bias[h])), layer.least, layer.most);
    const double decay = std::exp(-std::exp(layer.a_log[h]) * step);
    double* matrix = state.matrices.data() + h * K * C;
    for (int64_t c = 0; c < C; ++c) {
      y[h * C + c] = x[h * C + c] * layer.skip[h];
      for (int64_t k = 0; k < K; ++k) {
        matrix[k * C + c] = decay * matrix[k * C + c] + write[k] * step * x[h * C + c];
        y[h * C + c] += read[k] * matrix[k * C + c];
      }
    }
  }
  return y;
}

void test_space(const Shape& s, DType dtype, double least, double most) {
  const auto [groups, H, K, C, taps] = s;
  const int64_t N = s.channels();
  const Layer layer{weight(N, taps, dtype), weight(N, 1, dtype), weight(H, 1, dtype), weight(H, 1, dtype), weight(H, 1, dtype), least, most};
  const std::vector<i32> sequence[2] = {{0, 0, 0, 1, 1}, {1, 0, 0, 0, 0}}, positions[2] = {{0, 1, 2, 0, 1}, {2, 3, 4, 5, 6}};
  State state(s);
  std::vector<Row> rows;
  std::vector<float> x[2], dt[2], z[2], mixed[2], y[2];
  std::vector<Output> outputs = {output(state.memory)};
  for (int step = 0; step < 2; ++step) {
    const auto T = static_cast<int64_t>(positions[step].size());
    x[step] = random_floats(T * N), dt[step] = random_floats(T * H), z[step] = random_floats(T * H * C);
    mixed[step].resize(x[step].size()), y[step].resize(z[step].size());
    CausalConv conv{};
    state.operands(conv, s, positions[step], sequence[step], H);
    conv.x = x[step].data(), conv.weight = layer.taps.at(), conv.weight_dtype = layer.taps.type(), conv.y = mixed[step].data();
    conv.bias = layer.bias.at(), conv.bias_dtype = layer.bias.type(), conv.N = N, conv.taps = taps;
    rows.push_back(row_of(Opcode::causal_conv, conv));
    const auto space = [&](auto op) {
      state.operands(op, s, positions[step], sequence[step], 0);
      op.x = mixed[step].data(), op.dt = dt[step].data(), op.y = y[step].data(), op.least = least, op.most = most;
      op.a_log = layer.a_log.at(), op.a_log_dtype = layer.a_log.type(), op.skip = layer.skip.at(), op.skip_dtype = layer.skip.type();
      op.dt_bias = layer.dt_bias.at(), op.dt_bias_dtype = layer.dt_bias.type();
      op.groups = groups, op.H = H, op.K = K, op.C = C;
      return op;
    };
    if (step == 0) {
      rows.push_back(row_of(Opcode::selective_scan, space(SelectiveScan{})));
    } else {
      SelectiveScanGate op = space(SelectiveScanGate{});
      op.z = z[step].data();
      rows.push_back(row_of(Opcode::selective_scan_gate, op));
    }
    outputs.push_back(output(mixed[step])), outputs.push_back(output(y[step]));
  }
  everywhere("selective state spaces", rows, outputs, [&] {
    Plain plain[2];
    bool right = true;
    for (int step = 0; step < 2; ++step) {
      Doubles convolutions, results;
      for (size_t t = 0; t < positions[step].size(); ++t) {
        Plain& own = plain[sequence[step][t]];
        const bool begins = positions[step][t] == 0;
        const Doubles one = convolved(s, layer.taps, &layer.bias, x[step].data() + t * N, begins, own);
        const Doubles out = scanned(s, layer, mixed[step].data() + t * N, dt[step].data() + t * H, begins, own);
        convolutions.insert(convolutions.end(), one.begin(), one.end());
        results.insert(results.end(), out.begin(), out.end());
      }
      for (size_t i = 0; step == 1 && i < results.size(); ++i) results[i] *= silu(z[step][i]);
      right = right && close(mixed[step], convolutions, 1e-5) && close(y[step], results, 1e-4);
    }
    return right;
  });
}

void test_rows(int64_t T, int64_t groups, int64_t C, DType dtype) {
  const int64_t N = groups * C;
  const std::vector<float> x = random_floats(T * N), row = random_floats(N);
  const Tensor w = norm_weight(N, dtype);
  std::vector<float> normed(x.size()), times(x.size());
  const std::vector<Row> rows = {row_of(Opcode::group_norm, GroupNorm{x.data(), w.at(), w.type(), normed.data(), T, groups, C, 1e-5}),
                                 row_of(Opcode::mul_row, MulRow{x.data(), times.data(), T, N, row.data()})};
  everywhere("norms in groups", rows, {output(normed), output(times)}, [&] {
    Doubles norms, products;
    for (int64_t at = 0; at < T * N; at += C) {
      double squares = 0;
      for (int64_t c = 0; c < C; ++c) squares += static_cast<double>(x[at + c]) * x[at + c] / static_cast<double>(C);
      for (int64_t c = 0; c < C; ++c) norms.push_back(x[at + c] / std::sqrt(squares + 1e-5) * w[(at + c) % N]);
    }
    for (int64_t i = 0; i < T * N; ++i) products.push_back(static_cast<double>(x[i]) * row[i % N]);
    return close(normed, norms, 1e-5) && close(times, products, 1e-6);
  });
}

}  // namespace

void test_scan() {
  const Shape shapes[] = {{1, 1, 1, 2, 2}, {2, 2, 8, 32, 4}, {1, 3, 5, 37, 3}, {2, 4, 33, 64, 4}};
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const Shape& shape : shapes) test_space(shape, dtype, 0.0, HUGE_VAL);
    test_space(shapes[2], dtype, 0.5, 0.9);
    test_rows(0, 2, 4, dtype), test_rows(1, 1, 1, dtype), test_rows(3, 2, 20, dtype), test_rows(40, 3, 37, dtype);
  }
}

}  // namespace testing
