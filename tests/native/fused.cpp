// Every fused region, on odd shapes, compared with plain loops.
#include "plain.h"

namespace testing {

namespace {

struct Shape {
  int64_t T, D, H, K, C, F;
};

std::vector<i32> counted(int64_t count, i32 first) {
  std::vector<i32> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(first + static_cast<i32>(i));
  return values;
}

void test_qkv(const Shape& s, DType dtype, bool extras, int64_t half, bool interleaved) {
  const auto [T, D, H, K, C, F] = s;
  const std::vector<float> x = random_floats(T * D), inv_freq = frequencies(half);
  const Tensor scale = norm_weight(D, dtype), wq = weight(H * C, D, dtype), wk = weight(K * C, D, dtype), wv = weight(K * C, D, dtype);
  const Tensor none{}, bq = extras ? weight(H * C, 1, dtype) : Tensor{}, bk = extras ? weight(K * C, 1, dtype) : Tensor{};
  const Tensor q_norm = extras ? norm_weight(C, dtype) : Tensor{}, k_norm = extras ? norm_weight(C, dtype) : Tensor{};
  const std::vector<i32> positions = counted(T, 2), sequence(static_cast<size_t>(T), 0);
  Pages pages(1, T + 2, 4, K, C, 1);
  std::vector<float> q(T * H * C);
  NormQkvRopeAppend op{};
  pages.operands(op, positions, sequence, 0);
  op.x = x.data(), op.norm = scale.at(), op.norm_dtype = scale.type(), op.eps = 1e-5;
  op.wq = wq.at(), op.wq_dtype = wq.type(), op.wk = wk.at(), op.wk_dtype = wk.type(), op.wv = wv.at(), op.wv_dtype = wv.type();
  op.bq = bq.at(), op.bq_dtype = bq.type(), op.bk = bk.at(), op.bk_dtype = bk.type();
  op.q_norm = q_norm.at(), op.q_norm_dtype = q_norm.type(), op.q_eps = op.k_eps = 1e-6;
  op.k_norm = k_norm.at(), op.k_norm_dtype = k_norm.type(), op.inv_freq = inv_freq.data(), op.scale = 1.0;
  op.q = q.data(), op.T = T, op.D = D, op.H = H, op.rotated = 2 * half, op.interleaved = interleaved;
  everywhere("norm_qkv_rope_append", {row_of(Opcode::norm_qkv_rope_append, op)}, {output(q), output(pages.memory)}, [&] {
    const Doubles n = norm(widened(x), scale, D, 1e-5);
    Doubles wanted_q = linear(n, wq, bq, T, H * C, D), wanted_k = linear(n, wk, bk, T, K * C, D);
    if (extras) wanted_q = norm(wanted_q, q_norm, C, 1e-6), wanted_k = norm(wanted_k, k_norm, C, 1e-6);
    std::vector<float> keys, values;
    for (int64_t t = 0; t < T; ++t)
      for (int64_t head = 0; head < K; ++head)
        for (int64_t c = 0; c < C; ++c) {
          keys.push_back(pages.at(0, positions[t], 0, head, 0)[c]);
          values.push_back(pages.at(0, positions[t], 1, head, 0)[c]);
        }
    return close(q, rope(wanted_q, positions, inv_freq, H, C, 1.0, interleaved), 3e-5) &&
           close(keys, rope(wanted_k, positions, inv_freq, K, C, 1.0, interleaved), 3e-5) &&
           close(values, linear(n, wv, none, T, K * C, D), 3e-5);
  });
}

void test_gate_up(const Shape& s, DType dtype, bool has_bias) {
  const auto [T, D, H, K, C, F] = s;
  const std::vector<float> x = random_floats(T * D);
  const Tensor scale = norm_weight(D, dtype), gate = weight(F, D, dtype), up = weight(F, D, dtype);
  const Tensor gate_bias = has_bias ? weight(F, 1, dtype) : Tensor{}, up_bias = has_bias ? weight(F, 1, dtype) : Tensor{};
  std::vector<float> y(T * F);
  const NormGateUpSiluMul op{x.data(),    scale.at(),       scale.type(), 1e-5, 0.0,    nullptr,         0,  0, gate.at(), gate.type(), gate_bias.at(), gate_bias.type(),
                             up.at(),     up.type(),        up_bias.at(), up_bias.type(), y.data(),  T,           D,              F};
  everywhere("norm_gate_up_silu_mul", {row_of(Opcode::norm_gate_up_silu_mul, op)}, {output(y)}, [&] {
    const Doubles n = norm(widened(x), scale, D, 1e-5), gates = linear(n, gate, gate_bias, T, F, D);
    Doubles wanted = linear(n, up, up_bias, T, F, D);
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] *= silu(gates[i]);
    return close(y, wanted, 3e-5);
  });
}

void test_gelu_gate(const Shape& s, DType dtype, int64_t form) {
  const auto [T, D, H, K, C, F] = s;
  const std::vector<float> x = random_floats(T * D);
  const Tensor scale = norm_weight(D, dtype), gate = weight(F, D, dtype), up = weight(F, D, dtype), none{};
  std::vector<float> normed(T * F), plain(T * F);
  NormGateUpGeluMul op{};
  op.x = x.data(), op.norm = scale.at(), op.norm_dtype = scale.type(), op.eps = 1e-5, op.offset = 1.0, op.form = form;
  op.gate = gate.at(), op.gate_dtype = gate.type(), op.up = up.at(), op.up_dtype = up.type();
  op.y = normed.data(), op.T = T, op.D = D, op.F = F;
  NormGateUpGeluMul bare = op;
  bare.norm = nullptr, bare.y = plain.data();
  const std::vector<Row> rows = {row_of(Opcode::norm_gate_up_gelu_mul, op), row_of(Opcode::norm_gate_up_gelu_mul, bare)};
  everywhere("norm_gate_up_gelu_mul", rows, {output(normed), output(plain)}, [&] {
    const auto gated = [&](const Doubles& n) {
      const Doubles gates = linear(n, gate, none, T, F, D);
      Doubles wanted = linear(n, up, none, T, F, D);
      for (size_t i = 0; i < wanted.size(); ++i) wanted[i] *= gelu(gates[i], form);
      return wanted;
    };
    return close(normed, gated(norm(widened(x), scale, D, 1e-5, 1.0)), 1e-4) && close(plain, gated(widened(x)), 1e-4);
  });
}

// A plain feed-forward block after a layer norm, an RMS norm and none; gate and up after a layer norm.
void test_layer_norms(const Shape& s, DType dtype, int64_t form) {
  const auto [T, D, H, K, C, F] = s;
  const std::vector<float> x = random_floats(T * D);
  const Tensor scale = norm_weight(D, dtype), shift = weight(D, 1, dtype), w = weight(F, D, dtype), up = weight(F, D, dtype), none{};
  std::vector<float> centred(T * F), normed(T * F), plain(T * F), gated(T * F);
  NormLinearGelu op{};
  op.x = x.data(), op.norm = scale.at(), op.norm_dtype = scale.type(), op.eps = 1e-5, op.weight = w.at(), op.weight_dtype = w.type();
  op.form = form, op.T = T, op.D = D, op.N = F, op.y = normed.data();
  NormLinearGelu layer = op, bare = op;
  layer.norm_bias = shift.at(), layer.norm_bias_dtype = shift.type(), layer.centred = 1, layer.y = centred.data();
  bare.norm = nullptr, bare.y = plain.data();
  NormGateUpSiluMul gate{};
  gate.x = x.data(), gate.norm = scale.at(), gate.norm_dtype = scale.type(), gate.eps = 1e-5, gate.centred = 1, gate.y = gated.data();
  gate.norm_bias = shift.at(), gate.norm_bias_dtype = shift.type(), gate.gate = w.at(), gate.gate_dtype = w.type();
  gate.up = up.at(), gate.up_dtype = up.type(), gate.T = T, gate.D = D, gate.F = F;
  const std::vector<Row> rows = {row_of(Opcode::norm_linear_gelu, op), row_of(Opcode::norm_linear_gelu, layer),
                                 row_of(Opcode::norm_linear_gelu, bare), row_of(Opcode::norm_gate_up_silu_mul, gate)};
  everywhere("layer norms", rows, {output(centred), output(normed), output(plain), output(gated)}, [&] {
    const Doubles n = layer_norm(widened(x), scale, shift, D, 1e-5);
    const auto gelus = [&](const Doubles& from) {
      Doubles wanted = linear(from, w, none, T, F, D);
      for (double& value : wanted) value = gelu(value, form);
      return wanted;
    };
    Doubles wanted = linear(n, up, none, T, F, D);
    const Doubles gates = linear(n, w, none, T, F, D);
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] *= gates[i] / (1 + std::exp(-gates[i]));
    return close(centred, gelus(n), 1e-4) && close(normed, gelus(norm(widened(x), scale, D, 1e-5)), 1e-4) &&
           close(plain, gelus(widened(x)), 1e-4) && close(gated, wanted, 1e-4);
  });
}

void test_norm_add(const Shape& s, DType dtype) {
  const std::vector<float> x = random_floats(s.T * s.D), residual = random_floats(s.T * s.D);
  const Tensor scale = norm_weight(s.D, dtype);
  std::vector<float> y(s.T * s.D);
  const Tensor factor = weight(1, 1, dtype);
  std::vector<float> scaled(s.T * s.D);
  const NormAdd op{x.data(), scale.at(), scale.type(), 1e-5, 1.0, nullptr, 0, 0, residual.data(), y.data(), s.T, s.D, nullptr, 0};
  NormAdd times = op;
  times.y = scaled.data(), times.factor = factor.at(), times.factor_dtype = factor.type();
  everywhere("norm_add", {row_of(Opcode::norm_add, op), row_of(Opcode::norm_add, times)}, {output(y), output(scaled)}, [&] {
    Doubles wanted = norm(widened(x), scale, s.D, 1e-5, 1.0), multiplied;
    for (size_t i = 0; i < wanted.size(); ++i) multiplied.push_back((wanted[i] += residual[i]) * factor[0]);
    return close(y, wanted, 1e-5) && close(scaled, multiplied, 1e-5);
  });
}

// Heads normalised each by itself, or all of a token together; 2 * half of their channels rotated.
void test_norm_rope_append(const Shape& s, DType dtype, bool together, int64_t half, bool interleaved) {
  const auto [T, D, H, K, C, F] = s;
  const int64_t q_width = together ? H * C : C, k_width = together ? K * C : C;
  const std::vector<float> q_in = random_floats(T * H * C), k_in = random_floats(T * K * C), v = random_floats(T * K * C);
  const std::vector<float> inv_freq = frequencies(half);
  const Tensor q_norm = norm_weight(q_width, dtype), k_norm = norm_weight(k_width, dtype);
  const std::vector<i32> positions = counted(T, 2), sequence(static_cast<size_t>(T), 0);
  Pages pages(1, T + 2, 4, K, C, 1);
  std::vector<float> q(T * H * C);
  NormRopeAppend op{};
  pages.operands(op, positions, sequence, 0);
  op.q_in = q_in.data(), op.q_norm = q_norm.at(), op.q_norm_dtype = q_norm.type(), op.q_width = q_width;
  op.k_in = k_in.data(), op.k_norm = k_norm.at(), op.k_norm_dtype = k_norm.type(), op.k_width = k_width;
  op.q_eps = op.k_eps = 1e-6, op.offset = 0.5, op.v = v.data(), op.inv_freq = inv_freq.data(), op.scale = 1.25;
  op.q = q.data(), op.T = T, op.H = H, op.rotated = 2 * half, op.interleaved = interleaved;
  everywhere("norm_rope_append", {row_of(Opcode::norm_rope_append, op)}, {output(q), output(pages.memory)}, [&] {
    const Doubles wanted_q = norm(widened(q_in), q_norm, q_width, 1e-6, 0.5), wanted_k = norm(widened(k_in), k_norm, k_width, 1e-6, 0.5);
    std::vector<float> keys, values;
    for (int64_t t = 0; t < T; ++t)
      for (int64_t head = 0; head < K; ++head)
        for (int64_t c = 0; c < C; ++c) {
          keys.push_back(pages.at(0, positions[t], 0, head, 0)[c]);
          values.push_back(pages.at(0, positions[t], 1, head, 0)[c]);
        }
    return close(q, rope(wanted_q, positions, inv_freq, H, C, 1.25, interleaved), 1e-5) &&
           close(keys, rope(wanted_k, positions, inv_freq, K, C, 1.25, interleaved), 1e-5) && values == v;
  });
}

void test_head(const Shape& s, DType dtype) {
  const auto [T, D, H, K, C, F] = s;
  const int64_t R = (T + 1) / 2;
  const std::vector<float> x = random_floats(T * D);
  const Tensor scale = norm_weight(D, dtype), w = weight(F, D, dtype), none{};
  std::vector<i32> picked;
  for (int64_t r = 0; r < R; ++r) picked.push_back(static_cast<i32>(T - 1 - 2 * r));
  std::vector<float> y(R * F);
  const TakeNormLinear op{x.data(), scale.at(), scale.type(), 1e-5, 0.0, nullptr, 0, 0, picked.data(), w.at(), w.type(), nullptr, 0, y.data(), R, D, F, 0.25};
  everywhere("take_norm_linear", {row_of(Opcode::take_norm_linear, op)}, {output(y)}, [&] {
    Doubles taken;
    for (const i32 row : picked)
      for (int64_t d = 0; d < D; ++d) taken.push_back(x[row * D + d]);
    Doubles wanted = linear(norm(taken, scale, D, 1e-5), w, none, R, F, D);
    for (double& value : wanted) value *= 0.25;
    return close(y, wanted, 3e-5);
  });
}

}  // namespace

void test_fused() {
  const Shape shapes[] = {{1, 1, 1, 1, 2, 1}, {1, 33, 4, 2, 20, 45}, {3, 52, 6, 1, 80, 70}, {19, 40, 2, 2, 32, 33}, {34, 64, 2, 1, 256, 96}};
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (const Shape& shape : shapes)
      for (const bool extras : {false, true}) {
        for (const int64_t half : {shape.C / 2, shape.C * 3 / 8, int64_t{0}}) {
          for (const bool interleaved : {false, true}) {
            test_qkv(shape, dtype, extras, half, interleaved);
            test_norm_rope_append(shape, dtype, extras, half, interleaved);
          }
        }
        test_gate_up(shape, dtype, extras);
        test_gelu_gate(shape, dtype, extras ? 1 : 0);
        test_layer_norms(shape, dtype, extras ? 1 : 0);
        if (!extras) test_head(shape, dtype), test_norm_add(shape, dtype);
      }
}

}  // namespace testing
