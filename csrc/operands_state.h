// Operands of recurrent instructions, whose sequences keep a state of fixed size:
// one line each, as in instruction.h, which lists all instructions.
// Knows nothing about types: FIELD supplies them.
#pragma once

// A layer's recurrent state of each sequence (state.h):
// it begins at unit `first_unit` of the blocks in the sequence's table.
#define COTERIE_STATE(FIELD)                                                                                          \
  FIELD(const i32*, positions) FIELD(const i32*, sequence) FIELD(const i32*, state_tables)                           \
  FIELD(integer, table_width) FIELD(uint8_t*, kv) FIELD(integer, block_bytes) FIELD(integer, unit_bytes)             \
  FIELD(integer, first_unit)

// plain: 1 omits the silu after the sum. bias: a number per channel; null for none.
#define COTERIE_CAUSAL_CONV(FIELD)                                                                                   \
  FIELD(const f32*, x) FIELD(bytes*, weight) FIELD(integer, weight_dtype) COTERIE_STATE(FIELD) FIELD(f32*, y)         \
  FIELD(integer, T) FIELD(integer, B) FIELD(integer, N) FIELD(integer, taps) FIELD(integer, plain)                   \
  FIELD(bytes*, bias) FIELD(integer, bias_dtype)

// qkvz: for each key head q and k of K channels, then v and z of its value heads, C channels each. ba: for each key
// head b, then a, one number per value head. x, a, b: as gated_delta reads them; z: as the gate after it does.
#define COTERIE_NET_PARTS(FIELD)                                                                                     \
  FIELD(const f32*, qkvz) FIELD(const f32*, ba) FIELD(f32*, x) FIELD(f32*, z) FIELD(f32*, a) FIELD(f32*, b)          \
  FIELD(integer, T) FIELD(integer, key_heads) FIELD(integer, H) FIELD(integer, K) FIELD(integer, C)

// x: per token q, then k, of `key_heads` heads of K channels, then v of H heads of C. a, b: two gates per value head.
#define COTERIE_GATED_DELTA(FIELD)                                                                                   \
  FIELD(const f32*, x) FIELD(const f32*, a) FIELD(const f32*, b) FIELD(bytes*, a_log) FIELD(integer, a_log_dtype)    \
  FIELD(bytes*, dt_bias) FIELD(integer, dt_bias_dtype) COTERIE_STATE(FIELD) FIELD(f32*, y) FIELD(integer, T)          \
  FIELD(integer, B) FIELD(integer, key_heads) FIELD(integer, H) FIELD(integer, K) FIELD(integer, C)

#define COTERIE_GATED_DELTA_NORM(FIELD)                                                                              \
  COTERIE_GATED_DELTA(FIELD) FIELD(bytes*, norm) FIELD(integer, norm_dtype) FIELD(real, eps) FIELD(real, offset)     \
  FIELD(const f32*, z)

// x: per token H heads of C channels, then for `groups` groups K numbers that write the state (B in the paper), then K
// that read it (C in the paper). dt: a head's step size, clamped to [least, most] after bias and softplus. skip: per
// head, the factor of its input that is added to the output.
#define COTERIE_SELECTIVE_SCAN(FIELD)                                                                                \
  FIELD(const f32*, x) FIELD(const f32*, dt) FIELD(bytes*, a_log) FIELD(integer, a_log_dtype)                        \
  FIELD(bytes*, dt_bias) FIELD(integer, dt_bias_dtype) FIELD(bytes*, skip) FIELD(integer, skip_dtype)                \
  FIELD(real, least) FIELD(real, most) COTERIE_STATE(FIELD) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, B)        \
  FIELD(integer, groups) FIELD(integer, H) FIELD(integer, K) FIELD(integer, C)

#define COTERIE_SELECTIVE_SCAN_GATE(FIELD) COTERIE_SELECTIVE_SCAN(FIELD) FIELD(const f32*, z)

// x: per token `groups` rows of C numbers, each normalised by itself. weight: groups * C numbers.
#define COTERIE_GROUP_NORM(FIELD)                                                                                    \
  FIELD(const f32*, x) FIELD(bytes*, weight) FIELD(integer, weight_dtype) FIELD(f32*, y) FIELD(integer, T)           \
  FIELD(integer, groups) FIELD(integer, C) FIELD(real, eps)
