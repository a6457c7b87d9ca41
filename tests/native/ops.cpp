// Every op that is not a fusion, on odd shapes, compared with plain loops.
#include "plain.h"

namespace testing {

namespace {

constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};

void test_rows(int64_t T, int64_t D, DType dtype) {
  const int64_t V = 7;
  const Tensor table = weight(V, D, dtype), scale = norm_weight(D, dtype);
  const std::vector<float> x = random_floats(T * D);
  std::vector<i32> tokens, picked;
  for (int64_t t = 0; t < T; ++t) tokens.push_back(static_cast<i32>(t * 5 % V)), picked.push_back(static_cast<i32>(T - 1 - t));
  std::vector<float> embedded(T * D), normed(T * D), centred(T * D), bare(T * D), taken(T * D);
  const Tensor bias = weight(D, 1, DType::f16), none{};
  const std::vector<Row> rows = {
      row_of(Opcode::embed, Embed{tokens.data(), table.at(), table.type(), embedded.data(), T, D, 1.0}),
      row_of(Opcode::rms_norm, RmsNorm{x.data(), scale.at(), scale.type(), normed.data(), T, 1, D, 1e-5, 0.0, 0, 0}),
      row_of(Opcode::layer_norm, LayerNorm{x.data(), scale.at(), scale.type(), bias.at(), bias.type(), centred.data(), T, 1, D, 1e-5}),
      row_of(Opcode::layer_norm, LayerNorm{x.data(), scale.at(), scale.type(), nullptr, 0, bare.data(), T, 1, D, 1e-5}),
      row_of(Opcode::take_rows, TakeRows{x.data(), picked.data(), taken.data(), T, D}),
  };
  everywhere("rows", rows, {output(embedded), output(normed), output(centred), output(bare), output(taken)}, [&] {
    Doubles gathered, chosen;
    for (int64_t t = 0; t < T; ++t)
      for (int64_t d = 0; d < D; ++d) gathered.push_back(table[tokens[t] * D + d]), chosen.push_back(x[picked[t] * D + d]);
    return close(embedded, gathered, 0) && close(taken, chosen, 0) && close(normed, norm(widened(x), scale, D, 1e-5), 1e-5) &&
           close(centred, layer_norm(widened(x), scale, bias, D, 1e-5), 1e-5) && close(bare, layer_norm(widened(x), scale, none, D, 1e-5), 1e-5);
  });
}

void test_elementwise(int64_t T, int64_t N) {
  const std::vector<float> a = random_floats(T * N), b = random_floats(T * N);
  std::vector<float> sum(T * N), product(T * N), gated(T * N);
  const std::vector<Row> rows = {
      row_of(Opcode::add, Add{a.data(), b.data(), sum.data(), T, N}),
      row_of(Opcode::mul, Mul{a.data(), b.data(), product.data(), T, N}),
      row_of(Opcode::silu, Silu{a.data(), gated.data(), T, N}),
  };
  everywhere("elementwise", rows, {output(sum), output(product), output(gated)}, [&] {
    Doubles sums, products, silus;
    for (int64_t i = 0; i < T * N; ++i)
      sums.push_back(static_cast<double>(a[i]) + b[i]), products.push_back(static_cast<double>(a[i]) * b[i]), silus.push_back(silu(a[i]));
    return close(sum, sums, 1e-6) && close(product, products, 1e-6) && close(gated, silus, 1e-6);
  });
}

void test_activations(int64_t T, int64_t N) {
  const std::vector<float> x = random_floats(T * N, 0.0f, 2.0f);
  std::vector<float> by_erf(T * N), by_tanh(T * N), by_sigmoid(T * N), capped(T * N), squared(T * N);
  std::vector<float>* const forms[] = {&by_erf, &by_tanh, &by_sigmoid};
  std::vector<Row> rows = {row_of(Opcode::softcap, Softcap{x.data(), capped.data(), T, N, 1.5}),
                           row_of(Opcode::relu_squared, ReluSquared{x.data(), squared.data(), T, N})};
  for (int64_t form = 0; form < 3; ++form) rows.push_back(row_of(Opcode::gelu, Gelu{x.data(), forms[form]->data(), T, N, form}));
  everywhere("activations", rows, {output(by_erf), output(by_tanh), output(by_sigmoid), output(capped), output(squared)}, [&] {
    bool same = true;
    for (int64_t form = 0; form < 3; ++form) {
      Doubles wanted;
      for (const float one : x) wanted.push_back(gelu(one, form));
      same = same && close(*forms[form], wanted, 1e-6);
    }
    Doubles caps, squares;
    for (const float one : x) caps.push_back(1.5 * std::tanh(one / 1.5)), squares.push_back(one > 0 ? static_cast<double>(one) * one : 0);
    return same && close(capped, caps, 1e-6) && close(squared, squares, 1e-6);
  });
}

void test_linear(int64_t T, int64_t N, int64_t K, DType dtype, bool has_bias, double scale) {
  const Tensor w = weight(N, K, dtype), bias = has_bias ? weight(N, 1, dtype) : Tensor{};
  const std::vector<float> x = random_floats(T * K), residual = random_floats(T * N);
  std::vector<float> y(T * N), added(T * N);
  const Linear op{x.data(), w.at(), w.type(), bias.at(), bias.type(), y.data(), T, N, K, scale};
  const LinearAdd add{x.data(), w.at(), w.type(), bias.at(), bias.type(), added.data(), T, N, K, scale, residual.data()};
  everywhere("linear", {row_of(Opcode::linear, op), row_of(Opcode::linear_add, add)}, {output(y), output(added)}, [&] {
    Doubles wanted = linear(widened(x), w, bias, T, N, K);
    for (double& value : wanted) value *= scale;
    Doubles with_residual = wanted;
    for (int64_t i = 0; i < T * N; ++i) with_residual[i] += residual[i];
    return close(y, wanted, 1e-5) && close(added, with_residual, 1e-5);
  });
}

void test_shares(const std::vector<i32>& lengths, int64_t N, int64_t K, DType dtype) {
  std::vector<Tensor> weights;
  std::vector<bytes*> each;
  std::vector<i32> first = {0};
  for (const i32 length : lengths) {
    weights.push_back(weight(N, K, dtype));
    first.push_back(first.back() + length);
  }
  for (const Tensor& w : weights) each.push_back(w.at());
  const int64_t T = first.back(), shares = static_cast<int64_t>(lengths.size()), type = weights[0].type();
  const std::vector<float> x = random_floats(T * K), residual = random_floats(T * N);
  std::vector<float> y(T * N), added(T * N);
  const LinearEach op{x.data(), nullptr, type, nullptr, 0, y.data(), T, N, K, 0.5, each.data(), first.data(), shares};
  const LinearAddEach add{x.data(), nullptr, type, nullptr, 0, added.data(), T, N, K, 0.5, residual.data(), each.data(), first.data(), shares};
  everywhere("shares", {row_of(Opcode::linear_each, op), row_of(Opcode::linear_add_each, add)}, {output(y), output(added)}, [&] {
    Doubles wanted;
    for (int64_t s = 0; s < shares; ++s) {
      const Doubles rows(x.begin() + first[s] * K, x.begin() + first[s + 1] * K);
      for (const double value : linear(rows, weights[s], Tensor{}, lengths[s], N, K)) wanted.push_back(0.5 * value);
    }
    Doubles with_residual = wanted;
    for (int64_t i = 0; i < T * N; ++i) with_residual[i] += residual[i];
    return close(y, wanted, 1e-5) && close(added, with_residual, 1e-5);
  });
}

// The last `last` tokens of each context; with a window below 0, which is bidirectional, all must be given.
void test_attention(int64_t H, int64_t K, int64_t C, int64_t Z, int64_t window, const std::vector<int64_t>& contexts, int64_t last) {
  const int64_t B = static_cast<int64_t>(contexts.size()), layer = 1;
  std::vector<i32> positions, sequence;
  int64_t longest = 0;
  for (int64_t b = 0; b < B; ++b) {
    longest = std::max(longest, contexts[b]);
    for (int64_t p = std::max<int64_t>(0, contexts[b] - last); p < contexts[b]; ++p)
      positions.push_back(static_cast<i32>(window < 0 ? contexts[b] - 1 : p)), sequence.push_back(static_cast<i32>(b));
  }
  const int64_t T = static_cast<int64_t>(positions.size());
  Pages pages(B, longest, Z, K, C, 2);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t p = 0; p < contexts[b]; ++p)
      for (int64_t part = 0; part < 2; ++part)
        for (int64_t head = 0; head < K; ++head) {
          const std::vector<float> values = random_floats(C);
          std::memcpy(pages.at(b, p, part, head, layer), values.data(), static_cast<size_t>(C) * 4);
        }
  const std::vector<float> q = random_floats(T * H * C);
  std::vector<float> y(T * H * C);
  Attention op{};
  pages.operands(op, positions, sequence, layer);
  op.q = q.data(), op.y = y.data(), op.T = T, op.B = B, op.H = H, op.scale = 1 / std::sqrt(static_cast<double>(C)), op.window = window;
  const std::vector<float> sinks = random_floats(H, 1.0f, 2.0f);
  for (const double growth : {0.0, 0.3}) {
    std::vector<float> grown = q;
    op.growth = growth, op.every = 5;
    op.sinks = growth != 0.0 ? reinterpret_cast<bytes*>(sinks.data()) : nullptr, op.sinks_dtype = static_cast<integer>(DType::f32);
    for (int64_t i = 0; i < T * H * C; ++i)
      grown[i] *= static_cast<float>(1 + growth * std::log(1.0 + positions[i / (H * C)] / 5));
    everywhere("attention", {row_of(Opcode::attention, op)}, {output(y)},
               [&] { return close(y, attention(grown, pages, positions, sequence, H, layer, op.scale, window, growth != 0.0 ? sinks.data() : nullptr), 2e-5); });
  }
  for (const bool sloped : {false, true}) {
    if (window > 0) break;
    const int64_t reach = 3, count = sloped ? 1 : 5;
    const std::vector<float> bias = random_floats(count * H, 0.3f, 0.1f), buckets = {4, 0, 2, 1, 3, 0, 4};
    RelativeAttention relative{};
    std::memcpy(static_cast<void*>(&relative), &op, sizeof op);
    relative.growth = 0, relative.sinks = nullptr, relative.reach = reach, relative.buckets = sloped ? nullptr : buckets.data();
    relative.bias = reinterpret_cast<bytes*>(bias.data()), relative.bias_dtype = static_cast<integer>(DType::f32);
    const auto added = [&](int64_t head, int64_t offset) -> double {
      if (sloped) return -bias[head] * static_cast<double>(std::abs(offset));
      return bias[static_cast<int64_t>(buckets[std::clamp(offset, -reach, reach) + reach]) * H + head];
    };
    const int64_t seen = window < 0 ? -longest : 0;
    everywhere("relative attention", {row_of(Opcode::relative_attention, relative)}, {output(y)},
               [&] { return close(y, attention(q, pages, positions, sequence, H, layer, op.scale, seen, nullptr, added), 2e-5); });
  }
}

void test_append_and_rope(int64_t T, int64_t K, int64_t C, int64_t half, bool interleaved) {
  Pages pages(1, T, 3, K, C, 2);
  std::vector<i32> positions, sequence(static_cast<size_t>(T), 0);
  for (int64_t t = 0; t < T; ++t) positions.push_back(static_cast<i32>(t));
  const std::vector<float> k = random_floats(T * K * C), v = random_floats(T * K * C), inv_freq = frequencies(half);
  std::vector<float> rotated(T * K * C);
  KvAppend append{};
  pages.operands(append, positions, sequence, 1);
  append.k = k.data(), append.v = v.data(), append.T = T;
  const Rope turn{k.data(), positions.data(), inv_freq.data(), rotated.data(), T, K, C, 1.25, 2 * half, interleaved};
  const std::vector<Row> rows = {row_of(Opcode::kv_append, append), row_of(Opcode::rope, turn)};
  everywhere("kv_append and rope", rows, {output(pages.memory), output(rotated)}, [&] {
    bool same = true;
    for (int64_t t = 0; t < T; ++t)
      for (int64_t head = 0; head < K; ++head)
        same = same && std::memcmp(pages.at(0, t, 0, head, 1), &k[(t * K + head) * C], static_cast<size_t>(C) * 4) == 0 &&
               std::memcmp(pages.at(0, t, 1, head, 1), &v[(t * K + head) * C], static_cast<size_t>(C) * 4) == 0;
    return same && close(rotated, rope(widened(k), positions, inv_freq, K, C, 1.25, interleaved), 1e-5);
  });
}

void test_sample() {
  const int64_t R = 9, V = 131;
  std::vector<float> logits = random_floats(R * V);
  logits[4 * V + 17] = NAN;
  std::vector<int64_t> settings(R * kSettingWords);
  std::vector<i32> positions, picked, tokens(R);
  for (int64_t r = 0; r < R; ++r) {
    const double temperature = r % 3 == 0 ? 0.0 : 0.8, top_p = r % 3 == 1 ? 1.0 : 0.9, min_p = r % 2 == 0 ? 0.0 : 0.01;
    const int64_t top_k = r % 4 == 3 ? 5 : 0;
    int64_t* s = &settings[r * kSettingWords];
    std::memcpy(s, &temperature, 8), s[1] = top_k, std::memcpy(s + 2, &top_p, 8), std::memcpy(s + 3, &min_p, 8), s[4] = r;
    positions.push_back(static_cast<i32>(r * 3)), picked.push_back(static_cast<i32>(r));
  }
  std::vector<int64_t> block(kChangesWords + 3);  // for two tokens: one occurred twice and is made certain, one occurred before
  auto* changes = reinterpret_cast<Changes*>(block.data());
  *changes = {1.5, 0.25, 0.5, 2, 2};
  ids_of(changes)[0] = 77, times_of(changes)[0] = 1, bias_of(changes)[0] = 1000;
  ids_of(changes)[1] = 3, times_of(changes)[1] = 0, bias_of(changes)[1] = 0;
  note(changes, 77);
  settings[8 * kSettingWords + kChangesWord] = reinterpret_cast<int64_t>(changes);
  const std::vector<float> given = logits;
  const Sample op{logits.data(), settings.data(), positions.data(), picked.data(), tokens.data(), R, V};
  everywhere("sample", {row_of(Opcode::sample, op)}, {output(tokens)}, [&] {
    bool right = tokens[4] == -1 && tokens[8] == 77 && times_of(changes)[0] == 2;
    right = right && std::memcmp(given.data(), logits.data(), logits.size() * 4) == 0;
    for (int64_t r = 0; r < R; ++r) {
      if (r == 4 || r == 8) continue;
      const float* row = &logits[r * V];
      int64_t higher = 0;  // logits above the drawn token's
      for (int64_t i = 0; i < V; ++i) higher += tokens[r] >= 0 && tokens[r] < V && row[i] > row[tokens[r]];
      right = right && tokens[r] >= 0 && tokens[r] < V && higher < (r % 3 == 0 ? 1 : r % 4 == 3 ? 5 : V);
    }
    return right;
  });
}

}  // namespace

void test_ops() {
  for (const DType dtype : kTypes)
    for (const auto& [T, D] : {std::pair<int64_t, int64_t>{0, 3}, {1, 1}, {5, 33}, {40, 20}}) test_rows(T, D, dtype);
  for (const auto& [T, N] : {std::pair<int64_t, int64_t>{0, 4}, {1, 1}, {3, 33}, {20, 301}}) test_elementwise(T, N), test_activations(T, N);
  for (const DType dtype : kTypes)
    for (const int64_t T : {1, 2, 7, 17, 37})
      for (const auto& [N, K] : {std::pair<int64_t, int64_t>{1, 1}, {3, 33}, {65, 31}, {130, 64}}) test_linear(T, N, K, dtype, T % 2 == 0, T % 3 == 1 ? 1.0 : 0.3);
  for (const auto& lengths : {std::vector<i32>{1}, {1, 1, 2}, {3, 0, 19, 1}})
    for (const auto& [N, K] : {std::pair<int64_t, int64_t>{16, 33}, {130, 4}}) test_shares(lengths, N, K, DType::bf16);
  for (const int64_t window : {0, 9}) {
    test_attention(1, 1, 2, 1, window, {1}, 1);
    test_attention(6, 1, 20, 4, window, {3, 41, 12}, 1);
    test_attention(4, 2, 33, 5, window, {19, 40}, 13);
    test_attention(4, 4, 64, 16, window, {300, 1, 70}, 1);
    test_attention(2, 1, 256, 16, window, {40}, 40);
    test_attention(16, 16, 2, 16, window, {40, 515, 3, 516}, 1);  // tiles of two sequences: one sees the first span, one the last two
    test_attention(64, 16, 2, 16, window, {300, 1}, 9);           // a tile of four tokens of one sequence and one of another
  }
  for (const int64_t window : {-1, -9, -400}) {
    test_attention(6, 2, 20, 4, window, {1, 3, 41, 12}, 41);
    test_attention(2, 1, 33, 16, window, {300, 1, 270}, 300);  // windows that end in another span than the token's own
  }
  for (const auto& [K, C] : {std::pair<int64_t, int64_t>{1, 2}, {3, 20}, {2, 80}})
    for (const int64_t half : {C / 2, C * 3 / 8})
      for (const bool interleaved : {false, true}) test_append_and_rope(23, K, C, half, interleaved);
  test_sample();
}

}  // namespace testing
