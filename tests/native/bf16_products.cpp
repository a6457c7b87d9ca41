// Products of bfloat16 (csrc/bf16_products.h) on odd shapes, compared with plain loops, with AVX512-BF16 and without.
#include <array>

#include "plain.h"
#include "../../csrc/bf16_products_isa.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace testing {

namespace {

constexpr integer kBoth = static_cast<integer>(DType::bf16_bf16);

std::vector<float> rounded(std::vector<float> x) {
  for (float& value : x) value = plain::widen_bf16(plain::narrow_bf16(value));
  return x;
}

Row linear_row(const float* x, bytes* w, const Tensor& bias, float* y, int64_t T, int64_t N, int64_t K) {
  return row_of(Opcode::linear, Linear{x, w, kBoth, bias.at(), bias.type(), y, T, N, K, 1.0});
}

// A token's result is bit-identical among any number of others, and activations are rounded.
void test_linear(int64_t T, int64_t N, int64_t K) {
  const Tensor w = weight(N, K, DType::bf16), bias = tensor(random_floats(N), DType::f32);
  const std::vector<float> x = random_floats(T * K);
  std::vector<float> whole(T * N), parts(T * N);
  std::vector<Row> rows = {linear_row(x.data(), w.at(), bias, whole.data(), T, N, K)};
  for (int64_t t = 0, size = 1; t < T; t += size, size = std::min(size + 1, T - t))
    rows.push_back(linear_row(x.data() + t * K, w.at(), bias, parts.data() + t * N, size, N, K));
  everywhere("bf16", rows, {output(whole), output(parts)}, [&] {
    return whole == parts && close(whole, linear(widened(rounded(x)), w, bias, T, N, K), 3e-6);
  });
}

// Gate and up are read together, or separately if their types differ.
void test_fused(int64_t T, int64_t D, int64_t F, bool both) {
  const std::vector<float> x = random_floats(T * D);
  const Tensor scale = norm_weight(D, DType::bf16), gate = weight(F, D, DType::bf16), up = weight(F, D, DType::bf16), none;
  const integer other = both ? kBoth : up.type();
  std::vector<float> normed(T * D), gates(T * F), ups(T * F), silus(T * F), product(T * F), fused(T * F);
  const std::vector<Row> rows = {
      row_of(Opcode::rms_norm, RmsNorm{x.data(), scale.at(), scale.type(), normed.data(), T, 1, D, 1e-5, 0.0, 0, 0}),
      linear_row(normed.data(), gate.at(), none, gates.data(), T, F, D),
      row_of(Opcode::linear, Linear{normed.data(), up.at(), other, nullptr, 0, ups.data(), T, F, D, 1.0}),
      row_of(Opcode::silu, Silu{gates.data(), silus.data(), T, F}),
      row_of(Opcode::mul, Mul{silus.data(), ups.data(), product.data(), T, F}),
      row_of(Opcode::norm_gate_up_silu_mul, NormGateUpSiluMul{x.data(), scale.at(), scale.type(), 1e-5, 0.0, nullptr, 0, 0, gate.at(), kBoth, nullptr, 0,
                                                              up.at(), other, nullptr, 0, fused.data(), T, D, F}),
  };
  everywhere("bf16 fused", rows, {output(product), output(fused)}, [&] { return fused == product; });
}

// Weights that end where readable memory ends.
void test_end_of_memory([[maybe_unused]] int64_t T, [[maybe_unused]] int64_t N, [[maybe_unused]] int64_t K) {
#if defined(__linux__)
  const int64_t page = sysconf(_SC_PAGESIZE), size = 2 * N * K, pages = (size + page - 1) / page;
  auto* memory = static_cast<uint8_t*>(mmap(nullptr, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED || mprotect(memory + pages * page, page, PROT_NONE) != 0) return check(false, "a page is protected");
  const Tensor w = weight(N, K, DType::bf16), none;
  uint8_t* at = memory + pages * page - size;
  std::memcpy(at, w.at(), size);
  const std::vector<float> x = random_floats(T * K);
  std::vector<float> y(T * N);
  everywhere("bf16 at the end of memory", {linear_row(x.data(), at, none, y.data(), T, N, K)}, {output(y)},
             [&] { return close(y, linear(widened(rounded(x)), w, none, T, N, K), 3e-6); });
  munmap(memory, (pages + 1) * page);
#endif
}

#if defined(__x86_64__)

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], 4) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return a.size() == b.size();
}

float flushed(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value; }

// The sum that bf16_products.h defines: of every 32 columns a lane has two, of which it adds the odd one first;
// lanes are added by halves.
float dot_of_lanes(const float* x, const float* w, int64_t K) {
  float lanes[16] = {};
  for (int64_t k = 0; k < K; k += 32)
    for (int64_t i = 0; i < 16; ++i)
      for (const int64_t column : {k + 2 * i + 1, k + 2 * i})
        if (column < K) lanes[i] = flushed(std::fma(flushed(x[column]), flushed(w[column]), lanes[i]));
  for (int64_t half = 8; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lanes[i] = flushed(lanes[i] + lanes[i + half]);
  return lanes[0];
}

// Numbers of any sign and mantissa, with `exponents` different exponents from the least on.
std::vector<float> any(int64_t count, int least_exponent, int exponents) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    const auto exponent = static_cast<uint32_t>(least_exponent + static_cast<int>(rng()() % static_cast<uint64_t>(exponents)));
    values.push_back(plain::from_bits(static_cast<uint32_t>(rng()() & 0x807FFFFFu) | exponent << 23));
  }
  return values;
}

// With and without AVX512-BF16, results are bit-identical to the plain loops,
// for few tokens and many, in buffers of exactly the size needed.
void test_products(int64_t T, int64_t N, int64_t K, int least_exponent, int exponents) {
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) return;
  const std::vector<float> x = any(T * K, least_exponent, exponents), rounded_x = rounded(x);
  const Tensor w = tensor(any(N * K, least_exponent, exponents), DType::bf16);
  const int64_t stride = N + 1, token_numbers = ((K + 31) / 32 | 1) * 32;
  std::vector<float> wanted(T * stride), tile(T * token_numbers / 2), sums((T + 5) / 6 * 6 * 32 * 16);
  for (int64_t t = 0; t < T; ++t) {
    avx512::put_rounded(x.data() + t * K, K, t, T, sums.size() > 0, tile.data());
    for (int64_t n = 0; n < N; ++n) wanted[t * stride + n] = dot_of_lanes(&rounded_x[t * K], &w.values[n * K], K);
  }
  for (const bool native : {false, true})
    for (float* work : {static_cast<float*>(nullptr), sums.data()}) {
      if ((native && !__builtin_cpu_supports("avx512bf16")) || (work == nullptr && T > 16)) continue;
      std::vector<float> out(T * stride);
      avx512::bf16_tile(native, tile.data(), T, w.at(), N, K, out.data(), stride, work);
      const std::string how = std::string(native ? "AVX512-BF16" : "two fma") + (work != nullptr ? ", many" : ", few");
      check(same_bits(out, wanted), how + " of exponents from " + std::to_string(least_exponent));
    }
}

// With and without AVX512-BF16, attention is bit-identical, whatever the exponents of queries, keys and values.
void test_attention(int64_t C, int64_t first, int64_t last, int least_exponent, int exponents) {
  if (!__builtin_cpu_supports("avx512bf16")) return;
  constexpr int64_t kQueries = 7;
  const int64_t width = (C + 31) / 32 * 32, partial = width + 16;
  const std::vector<float> numbers = any(2 * kSpan * C + kQueries * width, least_exponent, exponents);
  const Tensor rows = tensor(std::vector<float>(numbers.begin(), numbers.begin() + 2 * kSpan * C), DType::bf16);
  std::vector<float> q(numbers.end() - kQueries * width, numbers.end()), keys(kSpan * width), values(kSpan * width);
  Span span{{}, 0, kSpan * C * 2, rows.type(), C, width, C, width, false};
  for (int64_t j = 0; j < kSpan; ++j) span.keys[j] = rows.at() + 2 * C * std::clamp(j, first, last - 1);
  for (int64_t i = 0; i < kQueries; ++i) {
    std::fill(&q[i * width] + C, &q[i * width] + width, 0.0f);
    avx512::round_query(&q[i * width], width);
  }
  Copy copy{keys.data(), values.data(), {}};
  avx512::copy_bf16(span, first, last, copy);
  std::vector<float> found[2];
  for (const bool native : {false, true}) {
    std::vector<float>& sums = found[native];
    std::vector<float> scores(kQueries * kSpan);
    sums.resize(kQueries * partial);
    Query queries[kQueries];
    for (int64_t i = 0; i < kQueries; ++i) queries[i] = {&q[i * width], first, last - (last - first > kQueries ? i : 0), &sums[i * partial], nullptr, nullptr};
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040);  // flush denormals, as a unit of attention does
    avx512::attend_bf16(native, copy, span, queries, kQueries, 0.125f, 0.0f, scores.data());
    __builtin_ia32_ldmxcsr(before);
  }
  check(same_bits(found[0], found[1]), "attention by two fma, of exponents from " + std::to_string(least_exponent));
}

#endif

}  // namespace

void test_bf16_products() {
  const std::vector<std::array<int64_t, 3>> shapes = {{0, 3, 5},   {1, 1, 1},    {1, 37, 31},  {1, 130, 33}, {2, 5, 32},   {3, 97, 65},
                                                      {7, 1, 100}, {16, 35, 96}, {17, 4, 577}, {21, 39, 40}, {135, 6, 1153}, {19, 33, 2500}};
  for (const auto& [T, N, K] : shapes) test_linear(T, N, K);
  for (const int64_t T : {0, 1, 2, 5, 16, 19})
    for (const bool both : {true, false}) test_fused(T, 77, 70, both), test_fused(T, 32, 3, both);
  for (const int64_t T : {1, 4, 18})
    for (const int64_t K : {1, 33, 1200}) test_end_of_memory(T, 39, K);
#if defined(__x86_64__)
  // Exponents near 1; all of them, with infinities and NaNs; with products near the least normal number; denormal and
  // nearly so; with products near the largest number.
  for (const auto& [least, count] : {std::pair<int, int>{118, 14}, {0, 256}, {58, 10}, {0, 4}, {185, 8}})
    for (const auto& [T, N, K] : shapes)
      if (K < 1200) test_products(T, N, K, least, count);
  test_products(7, 9, 1300, 118, 14);
  for (const auto& [least, count] : {std::pair<int, int>{118, 14}, {0, 256}, {58, 10}, {0, 4}, {122, 4}})
    for (const auto& [C, first, last] : std::vector<std::array<int64_t, 3>>{{64, 0, 256}, {1, 3, 4}, {7, 13, 90}, {80, 1, 129}, {33, 100, 231}})
      test_attention(C, first, last, least, count);
#endif
}

}  // namespace testing
