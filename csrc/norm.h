// Single rows of activations: RMS norm, layer norm, and the rotation of a head.
// Knows nothing about ops, tiles or products.
#pragma once

#include "vec.h"

namespace coterie::COTERIE_ISA {

// y = x * factor * (weight + offset) over one row; without kOffset there is none.
template <DType D, bool kOffset>
inline void scale_row(const float* x, V factor, bytes* weight, V offset, int64_t C, float* y) {
  constexpr int64_t size = D == DType::f32 ? 4 : 2;
  const auto shifted = [&](V w) {
    if constexpr (kOffset) return w + offset;
    return w;
  };
  int64_t i = 0;
  for (; i + W <= C; i += W) store(y + i, load(x + i) * factor * shifted(load_weights<D>(weight + i * size)));
  if (i < C) store_part(y + i, load_part(x + i, C - i) * factor * shifted(load_weights_part<D>(weight + i * size, C - i)), C - i);
}

// y = x / sqrt(mean(x^2) + eps) * (weight + offset) over one row of C elements; y may be x.
inline void norm_row(const float* x, bytes* weight, int64_t dtype, int64_t C, double eps, double offset, float* y) {
  V squares{};
  int64_t c = 0;
  for (; c + W <= C; c += W) squares = fma(load(x + c), load(x + c), squares);
  if (c < C) squares = fma(load_part(x + c, C - c), load_part(x + c, C - c), squares);
  const float mean = sum(squares) / static_cast<float>(C);
  const V factor = splat(1.0f / __builtin_sqrtf(mean + static_cast<float>(eps)));
  with_dtype(dtype, [&]<DType D>() {
    if (offset == 0.0) return scale_row<D, false>(x, factor, weight, V{}, C, y);
    scale_row<D, true>(x, factor, weight, splat(static_cast<float>(offset)), C, y);
  });
}

// y = (x - mean) * factor * weight + bias over one row; without kBias there is none.
template <DType D, DType B, bool kBias>
inline void centre_row(const float* x, V mean, V factor, bytes* weight, bytes* bias, int64_t C, float* y) {
  constexpr int64_t size = D == DType::f32 ? 4 : 2, bias_size = B == DType::f32 ? 4 : 2;
  int64_t i = 0;
  for (; i + W <= C; i += W) {
    const V scaled = (load(x + i) - mean) * factor * load_weights<D>(weight + i * size);
    if constexpr (kBias) store(y + i, scaled + load_weights<B>(bias + i * bias_size));
    else store(y + i, scaled);
  }
  if (i == C) return;
  const V scaled = (load_part(x + i, C - i) - mean) * factor * load_weights_part<D>(weight + i * size, C - i);
  if constexpr (kBias) store_part(y + i, scaled + load_weights_part<B>(bias + i * bias_size, C - i), C - i);
  else store_part(y + i, scaled, C - i);
}

// y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias over one row of C elements; y may be x, bias null.
inline void layer_norm_row(const float* x, bytes* weight, int64_t dtype, bytes* bias, int64_t bias_dtype, int64_t C, double eps, float* y) {
  V sums{}, squares{};
  int64_t c = 0;
  for (; c + W <= C; c += W) sums += load(x + c);
  if (c < C) sums += load_part(x + c, C - c);
  const float count = static_cast<float>(C);
  const V mean = splat(sum(sums) / count);
  const auto add_square = [&](V d) { squares = fma(d, d, squares); };
  for (c = 0; c + W <= C; c += W) add_square(load(x + c) - mean);
  if (c < C) {
    float rest[W] = {};  // lanes beyond the row are zero, not minus the mean
    store_part(rest, load_part(x + c, C - c) - mean, C - c);
    add_square(load(rest));
  }
  const V factor = splat(1.0f / __builtin_sqrtf(sum(squares) / count + static_cast<float>(eps)));
  with_dtype(dtype, [&]<DType D>() {
    if (bias == nullptr) return centre_row<D, D, false>(x, mean, factor, weight, bias, C, y);
    with_dtype(bias_dtype, [&]<DType B>() { centre_row<D, B, true>(x, mean, factor, weight, bias, C, y); });
  });
}

// The norm that begins a fused region, on one row of C elements; copies x if the region has none. y must not be x.
template <class Op>
inline void norm_first(const Op& op, const float* x, int64_t C, float* y) {
  if (op.norm == nullptr) {
    std::memcpy(y, x, static_cast<size_t>(C) * sizeof(float));
  } else if (op.centred != 0) {
    layer_norm_row(x, op.norm, op.norm_dtype, op.norm_bias, op.norm_bias_dtype, C, op.eps, y);
  } else {
    norm_row(x, op.norm, op.norm_dtype, C, op.eps, op.offset, y);
  }
}

// Rotates a head whose pairs are channels 2 i and 2 i + 1.
inline void rope_neighbours(const float* x, const float* cosines, const float* sines, int64_t half, float* y) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    y[2 * i] = a * cosines[i] - b * sines[i];
    y[2 * i + 1] = b * cosines[i] + a * sines[i];
  }
}

// Rotates the first 2 * half channels of one head; pairs are neighbours if interleaved,
// else channels i and half + i. y may be x.
inline void rope_row(const float* x, const float* cosines, const float* sines, int64_t half, int64_t interleaved, float* y) {
  if (interleaved) return rope_neighbours(x, cosines, sines, half, y);
  int64_t i = 0;
  for (; i + W <= half; i += W) {
    const V a = load(x + i), b = load(x + i + half), cosine = load(cosines + i), sine = load(sines + i);
    store(y + i, a * cosine - b * sine);
    store(y + i + half, b * cosine + a * sine);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    y[i] = a * cosines[i] - b * sines[i];
    y[i + half] = b * cosines[i] + a * sines[i];
  }
}

}  // namespace coterie::COTERIE_ISA
