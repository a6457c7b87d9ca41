// Ops that multiply by a scalar or by a part of a row, reorder parts, or have an activation of their own:
// odd shapes, compared with plain loops.
#include <algorithm>

#include "plain.h"

namespace testing {

namespace {

double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

void test_numbers(int64_t T, int64_t N, DType dtype) {
  const int64_t before = 3, step = N + before + 2;
  const std::vector<float> a = random_floats(T * N, 0.0f, 2.0f), b = random_floats(T * step);
  const Tensor one = weight(1, 1, dtype), above = weight(1, 1, dtype), below = weight(1, 1, dtype), beta = weight(1, 1, dtype), eps = weight(1, 1, dtype);
  std::vector<float> part(T * N), times(T * N), curved(T * N);
  const Xielu curve{a.data(), curved.data(), T, N, above.at(), above.type(), below.at(), below.type(), beta.at(), beta.type(), eps.at(), eps.type()};
  const std::vector<Row> rows = {row_of(Opcode::mul_part, MulPart{a.data(), b.data(), part.data(), T, N, before, step}),
                                 row_of(Opcode::mul_one, MulOne{a.data(), times.data(), T, N, one.at(), one.type()}),
                                 row_of(Opcode::xielu, curve)};
  everywhere("numbers", rows, {output(part), output(times), output(curved)}, [&] {
    Doubles parts, products, curves;
    for (int64_t t = 0; t < T; ++t)
      for (int64_t n = 0; n < N; ++n) {
        const double x = a[t * N + n], m = std::min(x, static_cast<double>(eps[0]));
        parts.push_back(x * b[t * step + before + n]), products.push_back(x * one[0]);
        const double left = (beta[0] + softplus(below[0])) * (std::expm1(m) - x), right = softplus(above[0]) * x * x;
        curves.push_back(beta[0] * x + (x > 0 ? right : left));
      }
    return close(part, parts, 1e-6) && close(times, products, 1e-6) && close(curved, curves, 1e-5);
  });
}

// Per key head q, k, its share of v and of z are together, and so are its shares of b and a.
void test_net_parts(int64_t T, int64_t key_heads, int64_t share, int64_t K, int64_t C) {
  const int64_t H = key_heads * share, values = share * C, width = 2 * key_heads * K + H * C;
  const std::vector<float> qkvz = random_floats(T * key_heads * 2 * (K + values)), ba = random_floats(T * 2 * H);
  std::vector<float> x(T * width), z(T * H * C), a(T * H), b(T * H);
  const NetParts op{qkvz.data(), ba.data(), x.data(), z.data(), a.data(), b.data(), T, key_heads, H, K, C};
  everywhere("net_parts", {row_of(Opcode::net_parts, op)}, {output(x), output(z), output(a), output(b)}, [&] {
    Doubles wanted(x.size()), gates(z.size()), first(a.size()), second(b.size());
    for (int64_t t = 0; t < T; ++t)
      for (int64_t head = 0; head < key_heads; ++head) {
        const float* from = &qkvz[(t * key_heads + head) * 2 * (K + values)];
        for (int64_t k = 0; k < K; ++k)
          wanted[t * width + head * K + k] = from[k], wanted[t * width + (key_heads + head) * K + k] = from[K + k];
        for (int64_t v = 0; v < values; ++v) {
          wanted[t * width + 2 * key_heads * K + head * values + v] = from[2 * K + v];
          gates[(t * key_heads + head) * values + v] = from[2 * K + values + v];
        }
        for (int64_t h = 0; h < share; ++h) {
          second[(t * key_heads + head) * share + h] = ba[(t * key_heads + head) * 2 * share + h];
          first[(t * key_heads + head) * share + h] = ba[(t * key_heads + head) * 2 * share + share + h];
        }
      }
    return close(x, wanted, 0) && close(z, gates, 0) && close(a, first, 0) && close(b, second, 0);
  });
}

}  // namespace

void test_parts() {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (const auto& [T, N] : {std::pair<int64_t, int64_t>{0, 4}, {1, 1}, {3, 33}, {20, 301}}) test_numbers(T, N, dtype);
  test_net_parts(0, 1, 1, 2, 2), test_net_parts(1, 1, 1, 1, 1), test_net_parts(5, 3, 2, 7, 9), test_net_parts(35, 2, 4, 16, 33);
}

}  // namespace testing
