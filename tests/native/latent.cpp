// Ops of latent attention, on odd shapes, compared with plain loops: prompts whose rows are stored in the same step,
// and tokens that follow a context.
#include "plain.h"

namespace testing {

namespace {

// H heads, N rows of a head for keys, V for values, R latent numbers, P rotated ones.
struct Shape {
  int64_t H, N, V, R, P;
  int64_t numbers() const { return R + P; }
};

constexpr int64_t kLayer = 1;

// Pages of two layers of rows: they take the place of the keys and the values of one layer.
Pages pages_of(int64_t B, int64_t context, int64_t Z, const Shape& s) { return Pages(B, context, Z, 1, s.numbers(), 1); }

float* row_at(Pages& pages, int64_t sequence, int64_t position) { return pages.at(sequence, position, kLayer, 0, 0); }

Doubles attended(const std::vector<float>& q, Pages& pages, const std::vector<i32>& positions, const std::vector<i32>& sequence, const Shape& s,
                 double scale) {
  Doubles y(positions.size() * s.H * s.R);
  for (size_t t = 0; t < positions.size(); ++t)
    for (int64_t h = 0; h < s.H; ++h) {
      const float* query = q.data() + (t * s.H + h) * s.numbers();
      Doubles weights;
      double highest = -1e300, total = 0;
      for (int64_t p = 0; p <= positions[t]; ++p) {
        const float* row = row_at(pages, sequence[t], p);
        double score = 0;
        for (int64_t c = 0; c < s.numbers(); ++c) score += static_cast<double>(query[c]) * row[c];
        weights.push_back(score * scale), highest = std::max(highest, weights.back());
      }
      for (double& weight : weights) total += weight = std::exp(weight - highest);
      for (int64_t p = 0; p <= positions[t]; ++p)
        for (int64_t c = 0; c < s.R; ++c) y[(t * s.H + h) * s.R + c] += weights[p] / total * row_at(pages, sequence[t], p)[c];
    }
  return y;
}

LatentAttention attention_of(Pages& pages, const std::vector<i32>& positions, const std::vector<i32>& sequence, const Shape& s,
                             const std::vector<float>& q, std::vector<float>& y) {
  LatentAttention op{};
  pages.operands(op, positions, sequence, kLayer);
  op.q = q.data(), op.y = y.data(), op.T = static_cast<integer>(positions.size()), op.B = pages.B, op.H = s.H, op.scale = 0.3;
  op.every = 1, op.latent = s.R;
  return op;
}

void test_prompts(const Shape& s, const std::vector<int64_t>& lengths, int64_t Z, DType dtype, bool interleaved) {
  std::vector<i32> positions, sequence;
  for (size_t b = 0; b < lengths.size(); ++b)
    for (int64_t p = 0; p < lengths[b]; ++p) positions.push_back(static_cast<i32>(p)), sequence.push_back(static_cast<i32>(b));
  const int64_t T = static_cast<int64_t>(positions.size()), C = s.numbers(), rows_each = s.N + s.V;
  Pages pages = pages_of(static_cast<int64_t>(lengths.size()), *std::max_element(lengths.begin(), lengths.end()), Z, s);
  const std::vector<float> x = random_floats(T * C), queries = random_floats(T * s.H * (s.N + s.P)), inv_freq = frequencies(s.P / 2);
  const Tensor gain = norm_weight(s.R, dtype), up = weight(s.H * rows_each, s.R, dtype);
  std::vector<float> q(T * s.H * C), y(T * s.H * s.R), values(T * s.H * s.V);
  LatentAppend append{};
  pages.operands(append, positions, sequence, kLayer);
  append.x = x.data(), append.norm = gain.at(), append.norm_dtype = gain.type(), append.eps = 1e-6, append.inv_freq = inv_freq.data();
  append.scale = 1.25, append.interleaved = interleaved, append.T = T, append.latent = s.R;
  const LatentQueries absorb{queries.data(), up.at(), up.type(), positions.data(), inv_freq.data(), 1.25, interleaved, q.data(), T, s.H, s.N, s.V, s.R, s.P};
  const LatentValues unfold{y.data(), up.at(), up.type(), values.data(), T, s.H, s.N, s.V, s.R};
  const std::vector<Row> rows = {row_of(Opcode::latent_append, append), row_of(Opcode::latent_queries, absorb),
                                 row_of(Opcode::latent_attention, attention_of(pages, positions, sequence, s, q, y)),
                                 row_of(Opcode::latent_values, unfold)};
  everywhere("latent attention of prompts", rows, {output(pages.memory), output(q), output(y), output(values)}, [&] {
    std::vector<float> stored;
    Doubles kept, absorbed, unfolded;
    for (int64_t t = 0; t < T; ++t) {
      const float* row = row_at(pages, sequence[t], positions[t]);
      stored.insert(stored.end(), row, row + C);
      const Doubles latent(x.begin() + t * C, x.begin() + t * C + s.R), key(x.begin() + t * C + s.R, x.begin() + (t + 1) * C);
      const Doubles normed = norm(latent, gain, s.R, 1e-6), rotated = rope(key, {positions[t]}, inv_freq, 1, s.P, 1.25, interleaved);
      kept.insert(kept.end(), normed.begin(), normed.end()), kept.insert(kept.end(), rotated.begin(), rotated.end());
      for (int64_t h = 0; h < s.H; ++h) {
        const float* query = &queries[(t * s.H + h) * (s.N + s.P)];
        for (int64_t r = 0; r < s.R; ++r) {
          double sum = 0;
          for (int64_t n = 0; n < s.N; ++n) sum += static_cast<double>(query[n]) * up[(h * rows_each + n) * s.R + r];
          absorbed.push_back(sum);
        }
        const Doubles last = rope(Doubles(query + s.N, query + s.N + s.P), {positions[t]}, inv_freq, 1, s.P, 1.25, interleaved);
        absorbed.insert(absorbed.end(), last.begin(), last.end());
        for (int64_t v = 0; v < s.V; ++v) {
          double sum = 0;
          for (int64_t r = 0; r < s.R; ++r) sum += static_cast<double>(y[(t * s.H + h) * s.R + r]) * up[(h * rows_each + s.N + v) * s.R + r];
          unfolded.push_back(sum);
        }
      }
    }
    return close(stored, kept, 1e-5) && close(q, absorbed, 2e-5) && close(y, attended(q, pages, positions, sequence, s, 0.3), 2e-5) &&
           close(values, unfolded, 2e-5);
  });
}

void test_behind_contexts(const Shape& s, const std::vector<int64_t>& contexts, int64_t Z, int64_t last) {
  std::vector<i32> positions, sequence;
  Pages pages = pages_of(static_cast<int64_t>(contexts.size()), *std::max_element(contexts.begin(), contexts.end()), Z, s);
  for (size_t b = 0; b < contexts.size(); ++b)
    for (int64_t p = 0; p < contexts[b]; ++p) {
      const std::vector<float> row = random_floats(s.numbers());
      std::memcpy(row_at(pages, static_cast<int64_t>(b), p), row.data(), row.size() * 4);
      if (p >= contexts[b] - last) positions.push_back(static_cast<i32>(p)), sequence.push_back(static_cast<i32>(b));
    }
  const int64_t T = static_cast<int64_t>(positions.size());
  const std::vector<float> q = random_floats(T * s.H * s.numbers());
  std::vector<float> y(T * s.H * s.R);
  everywhere("latent attention", {row_of(Opcode::latent_attention, attention_of(pages, positions, sequence, s, q, y))}, {output(y)},
             [&] { return close(y, attended(q, pages, positions, sequence, s, 0.3), 2e-5); });
}

}  // namespace

void test_latent() {
  const Shape shapes[] = {{1, 1, 1, 1, 2}, {3, 5, 9, 33, 6}, {16, 8, 4, 24, 8}, {130, 2, 3, 9, 2}};
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (const Shape& shape : shapes) test_prompts(shape, {1, 19, 5}, 4, dtype, shape.H % 2 == 1);
  test_prompts({2, 7, 5, 40, 4}, {70}, 16, DType::bf16, true);
  for (const Shape& shape : shapes) test_behind_contexts(shape, {300, 1, 70}, 7, 1), test_behind_contexts(shape, {270, 40}, 16, 13);
}

}  // namespace testing
