// The instruction list: fixed-size rows of 64-bit words. The opcodes and their operands are defined here and nowhere else.
// Knows nothing about Python, threads or how a kernel computes.
//
//   word 0       word 1                     word 2 ...
//   opcode       address of a gate or 0     operands in the order of the struct, pointers, integers or doubles (bit-cast)
//
// Letters: T tokens, B sequences, R sampled rows, D hidden, F intermediate, V vocabulary, H query heads, K key/value heads,
// C head channels, Z page size (tokens), E branches of a layer (a mixture of experts). Activations are row-major float32; weights have any alignment.
#pragma once

#include <cstdint>
#include <cstring>

#include "operands_state.h"

namespace coterie {

// q8, q6, q4, q4z, q2 and mx4 are packed in groups that share a scale, and in q4z also a zero point (packed.h). Their activations are rounded to
// 16-bit integers (integer_record.h), or to 8 bits where the type says int8. bf16_bf16: bfloat16 weights, activations rounded to bfloat16 (bf16_products.h).
enum class DType : int64_t {
  f32 = 0, f16 = 1, bf16 = 2, q8 = 3, q4 = 4, q8_int8 = 5, q4_int8 = 6, q4z = 7, q4z_int8 = 8, q2 = 9, q2_int8 = 10,
  mx4 = 11, mx4_int8 = 12, q6 = 13, bf16_bf16 = 14
};

// Bytes per element of an unpacked type.
constexpr int64_t size_of(int64_t dtype) { return dtype == static_cast<int64_t>(DType::f32) ? 4 : 2; }

// The layout of packed rows. row_bytes() is the only place that knows the distance from one row of a weight to the next.
constexpr int64_t kBlockWeights = 32;  // a packed row is padded to whole blocks
constexpr int64_t kGroupQ8 = 128, kGroupQ4 = 32, kBlockQ6 = 256, kUnitQ6 = 64, kUnitBytesQ6 = 52;  // q6 rows are padded to units, of four scales each
constexpr bool bf16_activations(int64_t dtype) { return dtype == static_cast<int64_t>(DType::bf16_bf16); }
constexpr bool is_packed(int64_t dtype) { return dtype >= static_cast<int64_t>(DType::q8) && !bf16_activations(dtype); }
constexpr bool has_zeros(int64_t dtype) { return dtype == static_cast<int64_t>(DType::q4z) || dtype == static_cast<int64_t>(DType::q4z_int8); }
constexpr bool is_q2(int64_t dtype) { return dtype == static_cast<int64_t>(DType::q2) || dtype == static_cast<int64_t>(DType::q2_int8); }
constexpr bool has_floats(int64_t dtype) { return dtype == static_cast<int64_t>(DType::mx4) || dtype == static_cast<int64_t>(DType::mx4_int8); }
constexpr bool is_q6(int64_t dtype) { return dtype == static_cast<int64_t>(DType::q6); }
constexpr bool int8_activations(int64_t dtype) {
  return dtype == static_cast<int64_t>(DType::q8_int8) || dtype == static_cast<int64_t>(DType::q4_int8) ||
         dtype == static_cast<int64_t>(DType::q4z_int8) || dtype == static_cast<int64_t>(DType::q2_int8) ||
         dtype == static_cast<int64_t>(DType::mx4_int8);
}
constexpr bool is_q8(int64_t dtype) {
  return dtype == static_cast<int64_t>(DType::q8) || dtype == static_cast<int64_t>(DType::q8_int8);
}
constexpr int64_t row_bytes(int64_t dtype, int64_t K) {
  if (!is_packed(dtype)) return K * size_of(dtype);
  const int64_t blocks = (K + kBlockWeights - 1) / kBlockWeights;
  if (is_q8(dtype)) return blocks * kBlockWeights + (K + kGroupQ8 - 1) / kGroupQ8 * 2;
  if (is_q6(dtype)) return (K + kUnitQ6 - 1) / kUnitQ6 * kUnitBytesQ6 + (K + kBlockQ6 - 1) / kBlockQ6 * 2;
  return blocks * (kBlockWeights / (is_q2(dtype) ? 4 : 2)) + (K + kGroupQ4 - 1) / kGroupQ4 * (has_zeros(dtype) ? 4 : 2);
}

constexpr int kRowWords = 48, kHeaderWords = 2;
constexpr int kOperandWords = kRowWords - kHeaderWords;

struct Row {
  int64_t opcode;
  const int32_t* gate;  // 0 pending, 1 passed, 2 failed; null means no gate
  int64_t operands[kOperandWords];
};
static_assert(sizeof(Row) == kRowWords * 8);

using f32 = float;
using i32 = int32_t;
using bytes = const uint8_t;  // weights: unaligned, of the type named by the operand that follows
using integer = int64_t;
using real = double;

constexpr bytes* weight_row(bytes* weight, int64_t dtype, int64_t K, int64_t row) { return weight + row * row_bytes(dtype, K); }

// One line per operand: FIELD(type, name). `bytes*` operands are followed by their dtype.
#define COTERIE_EMBED(FIELD) \
  FIELD(const i32*, tokens) FIELD(bytes*, table) FIELD(integer, table_dtype) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, D) \
  FIELD(real, scale)

// x_first, x_step: row i of C numbers begins at x + x_first + i * x_step. x_step 0: rows are contiguous.
#define COTERIE_RMS_NORM(FIELD)                                                                                      \
  FIELD(const f32*, x) FIELD(bytes*, weight) FIELD(integer, weight_dtype) FIELD(f32*, y) FIELD(integer, T)           \
  FIELD(integer, per_token) FIELD(integer, C) FIELD(real, eps) FIELD(real, offset)                                   \
  FIELD(integer, x_first) FIELD(integer, x_step)

#define COTERIE_LAYER_NORM(FIELD)                                                                                    \
  FIELD(const f32*, x) FIELD(bytes*, weight) FIELD(integer, weight_dtype) FIELD(bytes*, bias)                        \
  FIELD(integer, bias_dtype) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, per_token) FIELD(integer, C) FIELD(real, eps)

#define COTERIE_LINEAR(FIELD)                                                                                        \
  FIELD(const f32*, x) FIELD(bytes*, weight) FIELD(integer, weight_dtype) FIELD(bytes*, bias)                        \
  FIELD(integer, bias_dtype) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, N) FIELD(integer, K) FIELD(real, scale)

// rotated: leading channels of each head, twice the length of inv_freq; the rest is copied. interleaved: pairs are neighbours, not halves.
#define COTERIE_ROPE(FIELD)                                                                                          \
  FIELD(const f32*, x) FIELD(const i32*, positions) FIELD(const f32*, inv_freq) FIELD(f32*, y) FIELD(integer, T)     \
  FIELD(integer, H) FIELD(integer, C) FIELD(real, scale) FIELD(integer, rotated) FIELD(integer, interleaved)

#define COTERIE_PAGES(FIELD)                                                                                         \
  FIELD(const i32*, positions) FIELD(const i32*, sequence) FIELD(const i32*, block_tables)                           \
  FIELD(integer, table_width) FIELD(uint8_t*, kv) FIELD(integer, kv_dtype) FIELD(integer, block_bytes)               \
  FIELD(integer, Z) FIELD(integer, layer)

#define COTERIE_KV_APPEND(FIELD)                                                                                     \
  FIELD(const f32*, k) FIELD(const f32*, v) COTERIE_PAGES(FIELD) FIELD(integer, T) FIELD(integer, K) FIELD(integer, C)

// growth: a token's queries are scaled by 1 + growth * log(1 + position / every), an integer division; 0: no scaling.
// sinks: an attention sink per query head, that is a score without a value; null for none.
#define COTERIE_ATTENTION(FIELD)                                                                                     \
  FIELD(const f32*, q) COTERIE_PAGES(FIELD) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, B) FIELD(integer, H)     \
  FIELD(integer, K) FIELD(integer, C) FIELD(real, scale) FIELD(integer, window) FIELD(real, cap)    \
  FIELD(real, growth) FIELD(integer, every) FIELD(bytes*, sinks) FIELD(integer, sinks_dtype)

// bias: [N, H]. With d = key position - token position, clamped to [-reach, reach], bias[buckets[reach + d]] of the head is added to the score.
// Without buckets: -bias[0] * |d| (ALiBi). window below 0: attention is bidirectional, and `positions` holds the last position of each token's text.
// Positive windows are not supported.
#define COTERIE_RELATIVE_ATTENTION(FIELD)                                                                            \
  COTERIE_ATTENTION(FIELD) FIELD(bytes*, bias) FIELD(integer, bias_dtype) FIELD(const f32*, buckets) FIELD(integer, reach)

// Instead of keys and values a position has one row of C numbers: `latent` normalised ones, then the rotated key.
// All heads share it (K is 1), so pages hold [layer][Z][C].
#define COTERIE_LATENT_APPEND(FIELD)                                                                                 \
  FIELD(const f32*, x) FIELD(bytes*, norm) FIELD(integer, norm_dtype) FIELD(real, eps)                               \
  FIELD(const f32*, inv_freq) FIELD(real, scale) FIELD(integer, interleaved)                                         \
  COTERIE_PAGES(FIELD) FIELD(integer, T) FIELD(integer, K) FIELD(integer, C) FIELD(integer, latent)

// weight: [H, N + V, latent], the first N rows of a head for its keys, then V for its values. rotated: trailing channels of each query.
#define COTERIE_LATENT_QUERIES(FIELD)                                                                                \
  FIELD(const f32*, x) FIELD(bytes*, weight) FIELD(integer, weight_dtype) FIELD(const i32*, positions)               \
  FIELD(const f32*, inv_freq) FIELD(real, scale) FIELD(integer, interleaved) FIELD(f32*, y) FIELD(integer, T)        \
  FIELD(integer, H) FIELD(integer, N) FIELD(integer, V) FIELD(integer, latent) FIELD(integer, rotated)

// latent: leading channels of a row that serve as the value.
#define COTERIE_LATENT_ATTENTION(FIELD) COTERIE_ATTENTION(FIELD) FIELD(integer, latent)

#define COTERIE_LATENT_VALUES(FIELD)                                                                                 \
  FIELD(const f32*, x) FIELD(bytes*, weight) FIELD(integer, weight_dtype) FIELD(f32*, y) FIELD(integer, T)           \
  FIELD(integer, H) FIELD(integer, N) FIELD(integer, V) FIELD(integer, latent)

#define COTERIE_ADD(FIELD) FIELD(const f32*, a) FIELD(const f32*, b) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, N)

#define COTERIE_SILU(FIELD) FIELD(const f32*, x) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, N)

// form: how Phi is approximated, a GeluForm (math.h).
#define COTERIE_GELU(FIELD) COTERIE_SILU(FIELD) FIELD(integer, form)

#define COTERIE_SOFTCAP(FIELD) COTERIE_SILU(FIELD) FIELD(real, cap)

#define COTERIE_RELU_SQUARED(FIELD) COTERIE_SILU(FIELD)

// Each operand is a scalar weight.
#define COTERIE_XIELU(FIELD)                                                                                         \
  COTERIE_SILU(FIELD) FIELD(bytes*, alpha_p) FIELD(integer, alpha_p_dtype) FIELD(bytes*, alpha_n)                    \
  FIELD(integer, alpha_n_dtype) FIELD(bytes*, beta) FIELD(integer, beta_dtype) FIELD(bytes*, eps) FIELD(integer, eps_dtype)

#define COTERIE_MUL(FIELD) COTERIE_ADD(FIELD)

// b: rows of b_step numbers, of which N from b_first on are the factors.
#define COTERIE_MUL_PART(FIELD) COTERIE_MUL(FIELD) FIELD(integer, b_first) FIELD(integer, b_step)

// row: a factor per channel.
#define COTERIE_MUL_ROW(FIELD) COTERIE_SILU(FIELD) FIELD(const f32*, row)

// weight: a scalar.
#define COTERIE_MUL_ONE(FIELD) COTERIE_SILU(FIELD) FIELD(bytes*, weight) FIELD(integer, weight_dtype)

#define COTERIE_TAKE_ROWS(FIELD) \
  FIELD(const f32*, x) FIELD(const i32*, rows) FIELD(f32*, y) FIELD(integer, R) FIELD(integer, D)

// settings: kSettingWords words per row: temperature, top_k, top_p, min_p, seed, and the address of its Changes (changes.h) or 0. logits are modified
// while a token is drawn, then restored.
#define COTERIE_SAMPLE(FIELD)                                                                                        \
  FIELD(f32*, logits) FIELD(const int64_t*, settings) FIELD(const i32*, positions) FIELD(const i32*, rows)     \
  FIELD(i32*, tokens) FIELD(integer, R) FIELD(integer, V)

// offset: added to a norm's weight; in a fused region, to those of all its norms. norm_bias: of a layer norm, or null.
// centred: 1 for a layer norm, 0 for an RMS norm.
#define COTERIE_NORM(FIELD)                                                                                          \
  FIELD(const f32*, x) FIELD(bytes*, norm) FIELD(integer, norm_dtype) FIELD(real, eps) FIELD(real, offset)           \
  FIELD(bytes*, norm_bias) FIELD(integer, norm_bias_dtype) FIELD(integer, centred)

// norm may be null: x is used as it is.
#define COTERIE_NORM_QKV_ROPE_APPEND(FIELD)                                                                          \
  COTERIE_NORM(FIELD)                                                                                                \
  FIELD(bytes*, wq) FIELD(integer, wq_dtype) FIELD(bytes*, bq) FIELD(integer, bq_dtype)                              \
  FIELD(bytes*, wk) FIELD(integer, wk_dtype) FIELD(bytes*, bk) FIELD(integer, bk_dtype)                              \
  FIELD(bytes*, wv) FIELD(integer, wv_dtype) FIELD(bytes*, bv) FIELD(integer, bv_dtype)                              \
  FIELD(bytes*, q_norm) FIELD(integer, q_norm_dtype) FIELD(real, q_eps)                                              \
  FIELD(bytes*, k_norm) FIELD(integer, k_norm_dtype) FIELD(real, k_eps)                                              \
  FIELD(const f32*, inv_freq) FIELD(real, scale)                                                                     \
  COTERIE_PAGES(FIELD) FIELD(f32*, q) FIELD(integer, T) FIELD(integer, D) FIELD(integer, H) FIELD(integer, K)        \
  FIELD(integer, C) FIELD(integer, rotated) FIELD(integer, interleaved)

// q_width, k_width: how many numbers are normalised together: one head's, or all of a token. q_first, q_step: as x_first and x_step of rms_norm,
// where heads are normalised one by one.
#define COTERIE_NORM_ROPE_APPEND(FIELD)                                                                              \
  FIELD(const f32*, q_in) FIELD(bytes*, q_norm) FIELD(integer, q_norm_dtype) FIELD(real, q_eps)                      \
  FIELD(integer, q_width)                                                                                            \
  FIELD(const f32*, k_in) FIELD(bytes*, k_norm) FIELD(integer, k_norm_dtype) FIELD(real, k_eps)                      \
  FIELD(integer, k_width) FIELD(const f32*, v) FIELD(real, offset)                                                   \
  FIELD(const f32*, inv_freq) FIELD(real, scale)                                                                     \
  COTERIE_PAGES(FIELD) FIELD(f32*, q) FIELD(integer, T) FIELD(integer, H) FIELD(integer, K) FIELD(integer, C)        \
  FIELD(integer, rotated) FIELD(integer, interleaved) FIELD(integer, q_first) FIELD(integer, q_step)

// factor: a scalar by which the sum is multiplied; null for none.
#define COTERIE_NORM_ADD(FIELD)                                                                                      \
  COTERIE_NORM(FIELD) FIELD(const f32*, residual) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, D)                 \
  FIELD(bytes*, factor) FIELD(integer, factor_dtype)

#define COTERIE_LINEAR_ADD(FIELD) COTERIE_LINEAR(FIELD) FIELD(const f32*, residual)

// Rows are divided into `shares`: rows [first[s], first[s + 1]) use the weight at each[s].
#define COTERIE_SHARES(FIELD) FIELD(bytes* const*, each) FIELD(const i32*, first) FIELD(integer, shares)

#define COTERIE_LINEAR_EACH(FIELD) COTERIE_LINEAR(FIELD) COTERIE_SHARES(FIELD)

#define COTERIE_LINEAR_ADD_EACH(FIELD) COTERIE_LINEAR_ADD(FIELD) COTERIE_SHARES(FIELD)

// norm may be null: x is used as it is.
#define COTERIE_NORM_GATE_UP_SILU_MUL(FIELD)                                                                         \
  COTERIE_NORM(FIELD)                                                                                                \
  FIELD(bytes*, gate) FIELD(integer, gate_dtype) FIELD(bytes*, gate_bias) FIELD(integer, gate_bias_dtype)            \
  FIELD(bytes*, up) FIELD(integer, up_dtype) FIELD(bytes*, up_bias) FIELD(integer, up_bias_dtype)                    \
  FIELD(f32*, y) FIELD(integer, T) FIELD(integer, D) FIELD(integer, F)

#define COTERIE_NORM_GATE_UP_GELU_MUL(FIELD) COTERIE_NORM_GATE_UP_SILU_MUL(FIELD) FIELD(integer, form)

#define COTERIE_NORM_LINEAR_GELU(FIELD)                                                                              \
  COTERIE_NORM(FIELD) FIELD(bytes*, weight) FIELD(integer, weight_dtype) FIELD(bytes*, bias)                         \
  FIELD(integer, bias_dtype) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, D) FIELD(integer, N) FIELD(integer, form)

#define COTERIE_TAKE_NORM_LINEAR(FIELD)                                                                              \
  COTERIE_NORM(FIELD) FIELD(const i32*, rows) FIELD(bytes*, weight) FIELD(integer, weight_dtype)                     \
  FIELD(bytes*, bias) FIELD(integer, bias_dtype) FIELD(f32*, y) FIELD(integer, R) FIELD(integer, D) FIELD(integer, N) FIELD(real, scale)

// Takes top_k of E branches. normalise: 1 divides their weights by their sum, at least least_sum, plus added_sum. sigmoid: 1 for sigmoid scores,
// 0 for softmax. groups: 0 for none. factors: a factor per branch for its weight; null for none.
#define COTERIE_CHOOSE_BRANCHES(FIELD)                                                                               \
  FIELD(const f32*, logits) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, E) FIELD(integer, top_k)                 \
  FIELD(integer, normalise) FIELD(real, scale) FIELD(bytes*, bias) FIELD(integer, bias_dtype)                        \
  FIELD(integer, sigmoid) FIELD(real, least_sum) FIELD(integer, groups) FIELD(integer, taken_groups)                 \
  FIELD(integer, group_best) FIELD(bytes*, factors) FIELD(integer, factors_dtype) FIELD(real, added_sum)

// weights: [T, E], `taken` of them non-zero per token. branches: addresses of the E gate weights, then of the E up weights; `dtype` is that of all.
#define COTERIE_BRANCH_GATE_UP(FIELD)                                                                                \
  FIELD(const f32*, x) FIELD(const f32*, weights) FIELD(bytes* const*, branches) FIELD(integer, dtype)               \
  FIELD(f32*, y) FIELD(integer, T) FIELD(integer, E) FIELD(integer, taken) FIELD(integer, D) FIELD(integer, F)

// form: how Phi is approximated, a GeluForm (math.h).
#define COTERIE_BRANCH_GATE_UP_GELU(FIELD) COTERIE_BRANCH_GATE_UP(FIELD) FIELD(integer, form)

// gate_bias, up_bias: [E, F].
#define COTERIE_BRANCH_GATE_UP_CLIPPED(FIELD)                                                                        \
  COTERIE_BRANCH_GATE_UP(FIELD) FIELD(bytes*, gate_bias) FIELD(integer, gate_bias_dtype)                             \
  FIELD(bytes*, up_bias) FIELD(integer, up_bias_dtype) FIELD(real, alpha) FIELD(real, limit)

#define COTERIE_ADD_BRANCH_BIAS(FIELD)                                                                               \
  FIELD(const f32*, x) FIELD(const f32*, weights) FIELD(bytes*, bias) FIELD(integer, bias_dtype)                     \
  FIELD(f32*, y) FIELD(integer, T) FIELD(integer, E) FIELD(integer, D)

#define COTERIE_BRANCH_DOWN(FIELD) COTERIE_BRANCH_GATE_UP(FIELD)

#define COTERIE_BRANCH_DOWN_ADD(FIELD) COTERIE_BRANCH_DOWN(FIELD) FIELD(const f32*, residual)

// N numbers per token, in rows of C that are read as rms_norm reads them.
#define COTERIE_SIGMOID(FIELD)                                                                                       \
  FIELD(const f32*, x) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, N) FIELD(integer, C) FIELD(integer, x_first) FIELD(integer, x_step)

#define COTERIE_SIGMOID_MUL(FIELD) COTERIE_SIGMOID(FIELD) FIELD(const f32*, a)

// The closed list of instructions: OP(name, Struct, FIELDS). An opcode's number is its index in this list.
#define COTERIE_OPS(OP) COTERIE_VECTOR_OPS(OP) COTERIE_COMMON_OPS(OP)

// Compiled once for all machines.
#define COTERIE_COMMON_OPS(OP) OP(sample, Sample, COTERIE_SAMPLE)

// Compiled once per instruction set.
#define COTERIE_VECTOR_OPS(OP)                                                                                            \
  OP(embed, Embed, COTERIE_EMBED)                                                                                    \
  OP(rms_norm, RmsNorm, COTERIE_RMS_NORM)                                                                            \
  OP(linear, Linear, COTERIE_LINEAR)                                                                                 \
  OP(rope, Rope, COTERIE_ROPE)                                                                                       \
  OP(kv_append, KvAppend, COTERIE_KV_APPEND)                                                                         \
  OP(attention, Attention, COTERIE_ATTENTION)                                                                        \
  OP(add, Add, COTERIE_ADD)                                                                                          \
  OP(silu, Silu, COTERIE_SILU)                                                                                       \
  OP(mul, Mul, COTERIE_MUL)                                                                                          \
  OP(take_rows, TakeRows, COTERIE_TAKE_ROWS)                                                                         \
  OP(norm_qkv_rope_append, NormQkvRopeAppend, COTERIE_NORM_QKV_ROPE_APPEND)                                          \
  OP(linear_add, LinearAdd, COTERIE_LINEAR_ADD)                                                                      \
  OP(norm_gate_up_silu_mul, NormGateUpSiluMul, COTERIE_NORM_GATE_UP_SILU_MUL)                                        \
  OP(take_norm_linear, TakeNormLinear, COTERIE_TAKE_NORM_LINEAR)                                                     \
  OP(norm_rope_append, NormRopeAppend, COTERIE_NORM_ROPE_APPEND)                                                     \
  OP(norm_add, NormAdd, COTERIE_NORM_ADD)                                                                            \
  OP(gelu, Gelu, COTERIE_GELU)                                                                                       \
  OP(softcap, Softcap, COTERIE_SOFTCAP)                                                                              \
  OP(norm_gate_up_gelu_mul, NormGateUpGeluMul, COTERIE_NORM_GATE_UP_GELU_MUL)                                        \
  OP(choose_branches, ChooseBranches, COTERIE_CHOOSE_BRANCHES)                                                       \
  OP(branch_gate_up, BranchGateUp, COTERIE_BRANCH_GATE_UP)                                                           \
  OP(branch_down, BranchDown, COTERIE_BRANCH_DOWN)                                                                   \
  OP(branch_down_add, BranchDownAdd, COTERIE_BRANCH_DOWN_ADD)                                                        \
  OP(relu_squared, ReluSquared, COTERIE_RELU_SQUARED)                                                                \
  OP(layer_norm, LayerNorm, COTERIE_LAYER_NORM)                                                                      \
  OP(norm_linear_gelu, NormLinearGelu, COTERIE_NORM_LINEAR_GELU)                                                     \
  OP(linear_each, LinearEach, COTERIE_LINEAR_EACH)                                                                   \
  OP(linear_add_each, LinearAddEach, COTERIE_LINEAR_ADD_EACH)                                                        \
  OP(causal_conv, CausalConv, COTERIE_CAUSAL_CONV)                                                                   \
  OP(gated_delta, GatedDelta, COTERIE_GATED_DELTA)                                                                   \
  OP(gated_delta_norm, GatedDeltaNorm, COTERIE_GATED_DELTA_NORM)                                                     \
  OP(sigmoid, Sigmoid, COTERIE_SIGMOID)                                                                              \
  OP(sigmoid_mul, SigmoidMul, COTERIE_SIGMOID_MUL)                                                                   \
  OP(branch_gate_up_clipped, BranchGateUpClipped, COTERIE_BRANCH_GATE_UP_CLIPPED)                                    \
  OP(add_branch_bias, AddBranchBias, COTERIE_ADD_BRANCH_BIAS)                                                        \
  OP(latent_append, LatentAppend, COTERIE_LATENT_APPEND)                                                             \
  OP(latent_queries, LatentQueries, COTERIE_LATENT_QUERIES)                                                          \
  OP(latent_attention, LatentAttention, COTERIE_LATENT_ATTENTION)                                                    \
  OP(latent_values, LatentValues, COTERIE_LATENT_VALUES)                                                             \
  OP(branch_gate_up_gelu, BranchGateUpGelu, COTERIE_BRANCH_GATE_UP_GELU)                                             \
  OP(mul_part, MulPart, COTERIE_MUL_PART)                                                                            \
  OP(mul_one, MulOne, COTERIE_MUL_ONE)                                                                               \
  OP(net_parts, NetParts, COTERIE_NET_PARTS)                                                                         \
  OP(xielu, Xielu, COTERIE_XIELU)                                                                                    \
  OP(selective_scan, SelectiveScan, COTERIE_SELECTIVE_SCAN)                                                          \
  OP(selective_scan_gate, SelectiveScanGate, COTERIE_SELECTIVE_SCAN_GATE)                                            \
  OP(group_norm, GroupNorm, COTERIE_GROUP_NORM)                                                                      \
  OP(mul_row, MulRow, COTERIE_MUL_ROW)                                                                               \
  OP(relative_attention, RelativeAttention, COTERIE_RELATIVE_ATTENTION)

#define COTERIE_MEMBER(type, name) type name;
#define COTERIE_STRUCT(op, Struct, FIELDS) \
  struct Struct {                          \
    FIELDS(COTERIE_MEMBER)                 \
  };                                       \
  static_assert(sizeof(Struct) <= kOperandWords * 8);
COTERIE_OPS(COTERIE_STRUCT)
#undef COTERIE_STRUCT
#undef COTERIE_MEMBER

#define COTERIE_ENUM(op, Struct, FIELDS) op,
enum class Opcode : int64_t { COTERIE_OPS(COTERIE_ENUM) count };
#undef COTERIE_ENUM

constexpr int64_t kOpcodes = static_cast<int64_t>(Opcode::count);
constexpr int kSettingWords = 6, kChangesWord = 5;

template <class Op>
Op operands_of(const Row& row) {
  Op op;
  std::memcpy(&op, row.operands, sizeof op);
  return op;
}

}  // namespace coterie
