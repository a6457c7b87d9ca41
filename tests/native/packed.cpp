// Packed weights, and activations rounded for them, on odd shapes, compared with plain loops.
#include <array>
#include <limits>

#include "plain.h"
#include "../../csrc/integer_products.h"
#include "../../csrc/integer_products_isa.h"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace testing {

namespace {

// Twice the value of each code of mx4, written out from the specification:
// 0, 0.5, 1, 1.5, 2, 3, 4, 6, and the same negative.
constexpr float kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, -0.0f, -1, -2, -3, -4, -6, -8, -12};

int64_t group_of(DType dtype) { return dtype == DType::q8 ? kGroupQ8 : dtype == DType::q6 ? kBlockQ6 : kGroupQ4; }

// In place of a random number: makes the codes of every type the highest or the lowest,
// or those of mx4 its largest number.
constexpr uint64_t kHighest = 255 * 64 - 1, kLowest = 0, kLargest = 7;

// Writes the code of weight k of a row of q6, and the 8-bit scale of its 16 weights,
// to their places, as packed.h describes them.
float put_six(uint8_t* row, int64_t k, int64_t columns, int code, int scale) {
  const int64_t first = k / 256 * 256, units = (std::min<int64_t>(256, columns - first) + 63) / 64, in_unit = k % 64, unit = k % 256 / 64;
  uint8_t* block = row + first / 64 * 52;
  for (int64_t i = 0; i < 32; ++i)
    for (const int64_t half : {0, 1}) {
      if (half * 32 + i / 8 % 2 * 16 + i / 16 * 8 + i % 8 != in_unit) continue;
      block[32 * unit + i] |= static_cast<uint8_t>((code & 15) << 4 * half);
      block[32 * units + 16 * unit + i % 16] |= static_cast<uint8_t>((code >> 4 & 3) << (6 - 2 * (2 * half + i / 16)));
    }
  block[48 * units + k % 256 / 16] = static_cast<uint8_t>(scale);
  return static_cast<float>(code * scale);
}

// Packed rows at an odd address, in a buffer of exactly the size needed; `values`: the weights.
// Codes are random, or as `chance` has them.
Tensor packed(int64_t rows, int64_t columns, DType dtype, const std::function<uint64_t()>& chance = [] { return rng()(); }) {
  Tensor made{std::vector<float>(rows * columns), dtype, nullptr};
  const int64_t size = row_bytes(made.type(), columns), group = group_of(dtype), groups = (columns + group - 1) / group;
  const int64_t blocks = (columns + kBlockWeights - 1) / kBlockWeights;
  const bool zeros = has_zeros(made.type());
  made.memory = std::make_unique<uint8_t[]>(static_cast<size_t>(rows * size + 1));
  for (int64_t n = 0; n < rows; ++n) {
    uint8_t* row = made.memory.get() + 1 + n * size;
    uint8_t* scales = row + size - (zeros ? 4 : 2) * groups;
    for (int64_t k = 0, scale = 0; dtype == DType::q6 && k < columns; ++k) {
      if (k % 16 == 0) scale = static_cast<int>(chance() % 256) - 128;
      made.values[n * columns + k] = put_six(row, k, columns, static_cast<int>(chance() % 64) - 32, static_cast<int>(scale));
    }
    for (int64_t k = 0; dtype != DType::q6 && k < blocks * kBlockWeights; ++k) {
      if (dtype == DType::q2) {
        const unsigned code = static_cast<unsigned>(chance() % 4), shift = static_cast<unsigned>(k % 2 * 4 + k % 32 / 16 * 2);
        row[k / 32 * 8 + k % 16 / 2] |= static_cast<uint8_t>(code << shift);
        if (k < columns) made.values[n * columns + k] = 2.0f * static_cast<float>(code) - 3.0f;
        continue;
      }
      const int q = k < columns ? static_cast<int>(chance() % (dtype == DType::q8 ? 255 : 16)) - (dtype == DType::q8 ? 127 : 8) : 0;
      if (dtype == DType::q8) row[k] = static_cast<uint8_t>(q);
      if (dtype != DType::q8) row[k / 32 * 16 + k % 16] |= static_cast<uint8_t>(static_cast<unsigned>(q + 8) << (k % 32 < 16 ? 0 : 4));
      if (k < columns) made.values[n * columns + k] = dtype == DType::mx4 ? kTwice[q + 8] : static_cast<float>(zeros ? q + 8 : q);
    }
    for (int64_t g = 0; g < groups; ++g) {
      // Integers of q6, which include the scales of 16, are 32 times as large as those of q8.
      const uint16_t scale = plain::narrow_bf16(random_floats(1, 0.0f, dtype == DType::q6 ? 0.02f / 32 : 0.02f)[0]);
      std::memcpy(scales + 2 * g, &scale, 2);
      const uint16_t zero = plain::narrow_bf16(zeros ? random_floats(1, 7.0f, 3.0f)[0] : 0.0f);
      if (zeros) std::memcpy(scales + 2 * (groups + g), &zero, 2);
      for (int64_t k = g * group; k < std::min(columns, (g + 1) * group); ++k) {
        float& value = made.values[n * columns + k];
        value = (value - plain::widen_bf16(zero)) * plain::widen_bf16(scale);
      }
    }
  }
  return made;
}

// The operand's type: the bytes are the same whatever the activations.
integer type_of(const Tensor& w, bool int8) {
  if (!int8 || w.dtype == DType::q6) return w.type();
  if (w.dtype == DType::q2) return static_cast<integer>(DType::q2_int8);
  const DType four = w.dtype == DType::q4 ? DType::q4_int8 : w.dtype == DType::q4z ? DType::q4z_int8 : DType::mx4_int8;
  return static_cast<integer>(w.dtype == DType::q8 ? DType::q8_int8 : four);
}

// Activations as they are rounded for packed rows: to 15 bits for q6, whatever is asked. Where two weights share a byte
// and activations have 16 bits, the second of two is a multiple of 16,
// and the first a sixteenth of it plus a multiple of 16.
Doubles rounded_rows(const Doubles& x, int64_t T, int64_t K, DType dtype, bool int8) {
  const bool shared = !int8 && (dtype == DType::q4 || dtype == DType::q4z);
  const float most = dtype == DType::q6 ? 16383.0f : int8 ? 127.0f : shared ? 30464.0f : 32767.0f;
  const int64_t group = group_of(dtype);
  Doubles y(x.size());
  for (int64_t t = 0; t < T; ++t)
    for (int64_t first = 0; first < K; first += group) {
      float largest = 0.0f;
      const int64_t last = std::min(K, first + group);
      for (int64_t k = first; k < last; ++k) largest = std::max(largest, std::abs(static_cast<float>(x[t * K + k])));
      const auto integer_of = [&](int64_t k) {
        return largest == 0.0f || k >= last ? 0.0f : std::nearbyint(static_cast<float>(x[t * K + k]) * (most / largest));
      };
      for (int64_t k = first; k < last; ++k) {
        float q = integer_of(k);
        const bool second = k - first >= 16;
        const float upper = std::floor((integer_of(second ? k : k + 16) + 8.0f) / 16.0f);
        if (shared) q = second ? 16.0f * upper : upper + 16.0f * std::floor((q - upper + 7.0f) / 16.0f);
        y[t * K + k] = static_cast<double>(q) * (largest / most);
      }
    }
  return y;
}

void test_linear(const std::vector<float>& x, int64_t T, const Tensor& w, int64_t N, int64_t K, bool int8) {
  const DType dtype = w.dtype;
  const Tensor bias = weight(N, 1, DType::bf16);
  const std::vector<float> residual = random_floats(T * N);
  std::vector<float> y(T * N), added(T * N);
  const Linear op{x.data(), w.at(), type_of(w, int8), bias.at(), bias.type(), y.data(), T, N, K, 1.0};
  const LinearAdd add{x.data(), w.at(), type_of(w, int8), bias.at(), bias.type(), added.data(), T, N, K, 1.0, residual.data()};
  everywhere("packed linear", {row_of(Opcode::linear, op), row_of(Opcode::linear_add, add)}, {output(y), output(added)}, [&] {
    const Doubles activations = rounded_rows(widened(x), T, K, dtype, int8), wanted = linear(activations, w, bias, T, N, K);
    Doubles with_residual = wanted;
    for (int64_t i = 0; i < T * N; ++i) with_residual[i] += residual[i];
    return close(y, wanted, 2e-5) && close(added, with_residual, 2e-5);
  });
}

// A token's bits do not depend on the other tokens.
void test_parts(int64_t T, int64_t N, int64_t K, DType dtype, bool int8) {
  const Tensor w = packed(N, K, dtype);
  const std::vector<float> x = random_floats(T * K);
  std::vector<float> whole(T * N), parts(T * N);
  std::vector<Row> rows = {row_of(Opcode::linear, Linear{x.data(), w.at(), type_of(w, int8), nullptr, 0, whole.data(), T, N, K, 1.0})};
  for (int64_t t = 0, size = 1; t < T; t += size, size = std::min(size + 1, T - t))
    rows.push_back(row_of(Opcode::linear, Linear{x.data() + t * K, w.at(), type_of(w, int8), nullptr, 0, parts.data() + t * N, size, N, K, 1.0}));
  everywhere("packed parts", rows, {output(whole), output(parts)}, [&] { return whole == parts; });
}

void test_embed(int64_t T, int64_t D, DType dtype) {
  const Tensor table = packed(9, D, dtype);
  std::vector<i32> tokens;
  for (int64_t t = 0; t < T; ++t) tokens.push_back(static_cast<i32>(t * 5 % 9));
  std::vector<float> y(T * D);
  everywhere("packed embed", {row_of(Opcode::embed, Embed{tokens.data(), table.at(), table.type(), y.data(), T, D, 1.0})}, {output(y)}, [&] {
    Doubles wanted;
    for (const i32 token : tokens)
      for (int64_t d = 0; d < D; ++d) wanted.push_back(table[token * D + d]);
    return close(y, wanted, 0);
  });
}

// Fused regions are bit-identical to their parts.
void test_norm_and_linear(int64_t T, int64_t D, int64_t F, DType dtype, DType other, bool int8) {
  const std::vector<float> x = random_floats(T * D);
  const Tensor scale = norm_weight(D, DType::bf16), gate = packed(F, D, dtype), up = packed(F, D, other);
  std::vector<i32> picked;
  for (int64_t t = 0; t < T; ++t) picked.push_back(static_cast<i32>(T - 1 - t));
  std::vector<float> normed(T * D), gates(T * F), ups(T * F), silus(T * F), product(T * F), fused(T * F), head(T * F);
  const std::vector<Row> rows = {
      row_of(Opcode::rms_norm, RmsNorm{x.data(), scale.at(), scale.type(), normed.data(), T, 1, D, 1e-5, 0.0, 0, 0}),
      row_of(Opcode::linear, Linear{normed.data(), gate.at(), type_of(gate, int8), nullptr, 0, gates.data(), T, F, D, 1.0}),
      row_of(Opcode::linear, Linear{normed.data(), up.at(), type_of(up, int8), nullptr, 0, ups.data(), T, F, D, 1.0}),
      row_of(Opcode::silu, Silu{gates.data(), silus.data(), T, F}),
      row_of(Opcode::mul, Mul{silus.data(), ups.data(), product.data(), T, F}),
      row_of(Opcode::norm_gate_up_silu_mul, NormGateUpSiluMul{x.data(), scale.at(), scale.type(), 1e-5, 0.0, nullptr, 0, 0, gate.at(), type_of(gate, int8), nullptr, 0,
                                                              up.at(), type_of(up, int8), nullptr, 0, fused.data(), T, D, F}),
      row_of(Opcode::take_norm_linear, TakeNormLinear{x.data(), scale.at(), scale.type(), 1e-5, 0.0, nullptr, 0, 0, picked.data(), gate.at(), type_of(gate, int8), nullptr,
                                                      0, head.data(), T, D, F, 1.0}),
  };
  everywhere("packed fused", rows, {output(product), output(fused), output(head)}, [&] {
    for (int64_t t = 0; t < T; ++t)
      if (!std::equal(&gates[t * F], &gates[(t + 1) * F], &head[(T - 1 - t) * F])) return false;
    return fused == product;
  });
}

#if defined(__x86_64__)

// With 256-bit vectors many tokens have the bits that each has alone, by row or by panel, with AVX-VNNI and without.
void test_narrow(const std::vector<float>& x, int64_t T, const Tensor& w, int64_t N, int64_t K, bool int8) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
  const integer type = type_of(w, int8);
  const int64_t apart = plain::records_bytes(type, K), stride = N + 1;
  std::vector<uint8_t> records(T * apart);
  for (int64_t t = 0; t < T; ++t) avx2::put_records(x.data() + t * K, K, type, t, T, false, records.data());
  std::vector<float> wanted(T * stride), out(T * stride);
  std::vector<float> panel(3 * 8 * (16 + 2) * 16), sums(T * 8 * 16);  // as in integer_fill_avx2.h
  for (int64_t t = 0; t < T; ++t)
    avx2::narrow_tile(false, records.data() + t * apart, 1, w.at(), type, N, K, wanted.data() + t * stride, stride, nullptr, nullptr);
  for (const bool vnni : {false, true})
    for (const bool held : {false, true}) {
      if (vnni && !__builtin_cpu_supports("avxvnni")) continue;
      std::fill(out.begin(), out.end(), 0.0f);
      avx2::narrow_tile(vnni, records.data(), T, w.at(), type, N, K, out.data(), stride, held ? panel.data() : nullptr, held ? sums.data() : nullptr);
      check(out == wanted, vnni ? "vectors of 256 bits, with AVX-VNNI" : "vectors of 256 bits, without AVX-VNNI");
    }
}

// With AVX-512 many tokens have the bits that each has alone. Buffers are of exactly the size needed: a team's scratch
// is larger, so sanitizers would not notice writes beyond it.
void test_wide(const std::vector<float>& x, int64_t T, const Tensor& w, int64_t N, int64_t K, bool int8) {
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) return;
  const integer type = type_of(w, int8);
  const int64_t stride = N + 1;
  std::vector<float> wanted(T * stride), out(T * stride);
  for (int64_t t = 0; t < T; ++t) {
    std::vector<uint8_t> record(plain::records_bytes(type, K));
    avx512::put_records(x.data() + t * K, K, type, 0, 1, false, record.data());
    avx512::integer_tile(record.data(), 1, w.at(), type, N, K, wanted.data() + t * stride, stride, {nullptr, nullptr});
  }
  std::vector<uint8_t> records(plain::tile_records_bytes(type, T, K, true));
  std::vector<float> panel(6 * 8 * (16 + 1) * 32), sums(T * 8 * 32);  // as in integer_products.h
  for (int64_t t = 0; t < T; ++t) avx512::put_records(x.data() + t * K, K, type, t, T, true, records.data());
  avx512::integer_tile(records.data(), T, w.at(), type, N, K, out.data(), stride, {panel.data(), sums.data()});
  check(out == wanted, "AVX-512 by panels");
}

#elif defined(__aarch64__)

// Bit for bit, but any NaN equals any other.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float p, float q) {
    return std::isnan(p) ? std::isnan(q) : std::memcmp(&p, &q, sizeof p) == 0;
  });
}

// NEON is bit-identical to the plain loops, with byte dot products and without, and put_records writes those of the two
// that this CPU uses. Buffers are of exactly the size needed.
void test_neon(const std::vector<float>& x, int64_t T, const Tensor& w, int64_t N, int64_t K, bool int8) {
  const integer type = type_of(w, int8);
  const int64_t apart = plain::records_bytes(type, K), stride = N + 1;
  std::vector<uint8_t> records(T * apart), dispatched(T * apart);
  std::vector<float> wanted(T * stride, 0.5f), out(T * stride);
  for (int64_t t = 0; t < T; ++t) {
    plain::put_records(x.data() + t * K, K, type, t, T, false, records.data());
    neon::put_records(x.data() + t * K, K, type, t, T, false, dispatched.data());
  }
  plain::integer_tile(records.data(), T, w.at(), type, N, K, wanted.data(), stride, {nullptr, nullptr});
  const bool has_dot = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  for (const bool dot : {false, true}) {
    if (dot && !has_dot) continue;
    std::fill(records.begin(), records.end(), uint8_t{0xFF});
    std::fill(out.begin(), out.end(), 0.5f);
    for (int64_t t = 0; t < T; ++t) neon::put_narrow(dot, x.data() + t * K, K, type, records.data() + t * apart);
    if (dot == has_dot) check(records == dispatched, "the records that NEON's products on this CPU meet");
    neon::narrow_tile(dot, records.data(), T, w.at(), type, N, K, out.data(), stride);
    check(same_bits(out, wanted), dot ? "NEON, with products of bytes" : "NEON, without products of bytes");
  }
}

// Every number of tokens and rows that is processed at once, and every remainder after whole records;
// none at all; numbers that are not finite.
void test_neon_shapes(DType dtype, bool int8) {
  for (const int64_t K : {1, 31, 32, 33, 64, 96, 127, 128, 160, 192, 224, 256, 320, 416, 448, 640, 704, 1055})
    for (const auto& [T, N] : {std::array<int64_t, 2>{1, 1}, {1, 2}, {1, 3}, {1, 4}, {1, 7}, {2, 5}, {3, 4}, {4, 3}, {5, 2}, {11, 6}, {17, 5}})
      test_neon(random_floats(T * K), T, packed(N, K, dtype), N, K, int8);
  test_neon({}, 0, packed(3, 40, dtype), 3, 40, int8);
  test_neon(random_floats(2 * 40), 2, packed(0, 40, dtype), 0, 40, int8);
  std::vector<float> zeros(3 * 300), tiny(3 * 300, 1e-42f), none = random_floats(3 * 300);
  none[17] = std::numeric_limits<float>::infinity(), none[300 + 299] = std::numeric_limits<float>::quiet_NaN();
  for (const std::vector<float>& x : {zeros, tiny, none}) test_neon(x, 3, packed(7, 300, dtype), 7, 300, int8);
}

#endif

// The greatest possible sums: all codes as high or as low as possible, all activations equally large, of one sign or
// opposite in the two halves of a group. 30336 of 30464 next to the largest maximises
// what is left of a number whose weight shares a byte.
void test_extremes(int64_t T, int64_t N, int64_t K, DType dtype, bool int8) {
  for (const uint64_t code : {kHighest, kLowest, kLargest}) {
    const Tensor w = packed(N, K, dtype, [code] { return code; });
    for (const float sign : {1.0f, -1.0f})
      for (const float first : {1.0f, -1.0f, 30336.0f / 30464.0f}) {
        std::vector<float> x;
        for (int64_t i = 0; i < T * K; ++i) x.push_back(sign * (i % K % 32 < 16 ? first : 1.0f));
        test_linear(x, T, w, N, K, int8);
#if defined(__x86_64__)
        test_narrow(x, T, w, N, K, int8);
        test_wide(x, T, w, N, K, int8);
#elif defined(__aarch64__)
        test_neon(x, T, w, N, K, int8);
#endif
      }
  }
}

}  // namespace

void test_packed() {
  for (const DType dtype : {DType::q8, DType::q6, DType::q4, DType::q4z, DType::q2, DType::mx4}) {
    for (const bool int8 : {false, true}) {
      for (const auto& [T, N, K] : {std::array<int64_t, 3>{1, 1, 1}, {1, 37, 160}, {1, 6, 32}, {1, 9, 608}, {1, 9, 576}, {1, 7, 896}, {1, 8, 430}, {6, 9, 544}, {2, 5, 33}, {3, 40, 64}, {7, 9, 200}, {16, 33, 576}, {35, 6, 130}, {3, 7, 384}, {0, 3, 40}, {29, 45, 1700}, {18, 17, 224}})
        test_linear(random_floats(T * K), T, packed(N, K, dtype), N, K, int8);
      test_parts(21, 7, 300, dtype, int8);
      test_parts(21, 7, 544, dtype, int8);
      test_parts(19, 1, 9793, dtype, int8);
#if defined(__x86_64__)
      for (const auto& [T, N, K] : {std::array<int64_t, 3>{1, 1, 1}, {1, 9, 576}, {3, 11, 896}, {4, 7, 704}, {2, 17, 33}, {5, 16, 256}, {7, 9, 576}, {8, 33, 320}, {21, 30, 800}, {27, 8, 1700}, {13, 19, 641}, {6, 16, 705}})
        test_narrow(random_floats(T * K), T, packed(N, K, dtype), N, K, int8);
      for (const auto& [T, N, K] : {std::array<int64_t, 3>{1, 1, 1}, {2, 33, 31}, {3, 32, 256}, {4, 5, 1568}, {5, 64, 1537}, {6, 17, 129}, {7, 31, 3100}, {9, 33, 640}, {19, 35, 500}})
        test_wide(random_floats(T * K), T, packed(N, K, dtype), N, K, int8);
#elif defined(__aarch64__)
      test_neon_shapes(dtype, int8);
#endif
      for (const int64_t T : {1, 6, 21}) test_extremes(T, 33, 300, dtype, int8);
      for (const DType other : {DType::q8, DType::q6, DType::q4, DType::q4z, DType::q2, DType::mx4}) {
        test_norm_and_linear(1, 96, 35, dtype, other, int8);
        test_norm_and_linear(19, 70, 33, dtype, other, int8);
      }
    }
    test_embed(5, 50, dtype);
    test_embed(18, 128, dtype);
  }
}

}  // namespace testing
