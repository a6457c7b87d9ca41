// Operands of instructions whose sequences keep a state of one size, a line each as in instruction.h, which has the list of all.
// Knows nothing about types: FIELD gives them.
#pragma once

// Where a sequence keeps a layer's recurrent state (kept.h): from unit `first_unit` on, in the blocks at the beginning of its table.
#define COTERIE_KEPT(FIELD)                                                                                          \
  FIELD(const i32*, positions) FIELD(const i32*, sequence) FIELD(const i32*, state_tables)                           \
  FIELD(integer, table_width) FIELD(uint8_t*, kv) FIELD(integer, block_bytes) FIELD(integer, unit_bytes)             \
  FIELD(integer, first_unit)

// plain: 1 without silu behind the sum. bias: a number for each channel; null for none.
#define COTERIE_CAUSAL_CONV(FIELD)                                                                                   \
  FIELD(const f32*, x) FIELD(bytes*, weight) FIELD(integer, weight_dtype) COTERIE_KEPT(FIELD) FIELD(f32*, y)         \
  FIELD(integer, T) FIELD(integer, B) FIELD(integer, N) FIELD(integer, taps) FIELD(integer, plain)                   \
  FIELD(bytes*, bias) FIELD(integer, bias_dtype)

// qkvz: of each key head q and k of K channels, then v and z of its value heads, C channels each. ba: of each key head b, then a, a number
// for each of its value heads. x, a, b: as gated_delta reads them; z: as the gate behind it does.
#define COTERIE_NET_PARTS(FIELD)                                                                                     \
  FIELD(const f32*, qkvz) FIELD(const f32*, ba) FIELD(f32*, x) FIELD(f32*, z) FIELD(f32*, a) FIELD(f32*, b)          \
  FIELD(integer, T) FIELD(integer, key_heads) FIELD(integer, H) FIELD(integer, K) FIELD(integer, C)

// x: of each token q and k of `key_heads` heads of K channels, then v of H heads of C. a, b: two gates of each value head.
#define COTERIE_GATED_DELTA(FIELD)                                                                                   \
  FIELD(const f32*, x) FIELD(const f32*, a) FIELD(const f32*, b) FIELD(bytes*, a_log) FIELD(integer, a_log_dtype)    \
  FIELD(bytes*, dt_bias) FIELD(integer, dt_bias_dtype) COTERIE_KEPT(FIELD) FIELD(f32*, y) FIELD(integer, T)          \
  FIELD(integer, B) FIELD(integer, key_heads) FIELD(integer, H) FIELD(integer, K) FIELD(integer, C)

#define COTERIE_GATED_DELTA_NORM(FIELD)                                                                              \
  COTERIE_GATED_DELTA(FIELD) FIELD(bytes*, norm) FIELD(integer, norm_dtype) FIELD(real, eps) FIELD(real, offset)     \
  FIELD(const f32*, z)

// x: of each token H heads of C channels, then of `groups` groups K numbers that write a state and K that read it. dt: the step of each
// head, which behind its bias and softplus is bounded by `least` and `most`. skip: of each head how much of its input passes by.
#define COTERIE_SELECTIVE_SCAN(FIELD)                                                                                \
  FIELD(const f32*, x) FIELD(const f32*, dt) FIELD(bytes*, a_log) FIELD(integer, a_log_dtype)                        \
  FIELD(bytes*, dt_bias) FIELD(integer, dt_bias_dtype) FIELD(bytes*, skip) FIELD(integer, skip_dtype)                \
  FIELD(real, least) FIELD(real, most) COTERIE_KEPT(FIELD) FIELD(f32*, y) FIELD(integer, T) FIELD(integer, B)        \
  FIELD(integer, groups) FIELD(integer, H) FIELD(integer, K) FIELD(integer, C)

#define COTERIE_SELECTIVE_SCAN_GATE(FIELD) COTERIE_SELECTIVE_SCAN(FIELD) FIELD(const f32*, z)

// Of each token `groups` rows of C numbers, normed one by one; weight: groups * C numbers.
#define COTERIE_GROUP_NORM(FIELD)                                                                                    \
  FIELD(const f32*, x) FIELD(bytes*, weight) FIELD(integer, weight_dtype) FIELD(f32*, y) FIELD(integer, T)           \
  FIELD(integer, groups) FIELD(integer, C) FIELD(real, eps)
