// exp, sigmoid, tanh, gelu and the angles of rope, bit-identical in every lane and for every blocking.
// Knows nothing about ops.
#pragma once

#include <cmath>

#include "vec.h"

namespace coterie::COTERIE_ISA {

// exp(x) with a relative error of about 1e-7 for x in [-87.3, 88.3]; clamped outside, so that it never overflows.
// NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor polynomial of degree 7 (remainder below 6e-9); then 2^n by the exponent.
inline V exp(V of) {
  constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440054690583e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const V x = min(max(of, splat(-87.3f)), splat(88.3f));
  const V shifted = fma(x, splat(kLog2E), splat(kRound));
  const V n = shifted - splat(kRound);
  V r = fma(n, splat(-kLn2High), x);
  r = fma(n, splat(-kLn2Low), r);
  V p = splat(1.0f / 5040);
  p = fma(p, r, splat(1.0f / 720));
  p = fma(p, r, splat(1.0f / 120));
  p = fma(p, r, splat(1.0f / 24));
  p = fma(p, r, splat(1.0f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p * r, r, r) + splat(1.0f);
  VI bits, scaled;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&scaled, &p, sizeof scaled);
  scaled += bits << 23;
  std::memcpy(&p, &scaled, sizeof p);
  return of != of ? of : p;  // the clamp turned a NaN into -87.3
}

inline V silu(V x) { return x / (splat(1.0f) + exp(V{} - x)); }

inline V sigmoid(V x) { return splat(1.0f) / (splat(1.0f) + exp(V{} - x)); }

// tanh(x) with a relative error of about 1e-7: near 0 the fifth convergent of Lambert's continued fraction, else by exp.
inline V tanh(V x) {
  const V magnitude = max(x, V{} - x), z = x * x;
  const V near = x * fma(z, z + splat(105.0f), splat(945.0f)) / fma(z, fma(z, splat(15.0f), splat(420.0f)), splat(945.0f));
  const V e = exp(splat(-2.0f) * magnitude), far = (splat(1.0f) - e) / (splat(1.0f) + e);
  return magnitude < splat(0.75f) ? near : x < V{} ? V{} - far : far;
}

inline V softcap(V x, V cap) { return cap * tanh(x / cap); }

// exp(x) - 1 - x with a relative error of about 1e-6 for x <= 0; above -0.5 by the Taylor polynomial of degree 9, whose
// relative remainder is below 1e-9.
inline V exp_beyond_line(V x) {
  V p = splat(1.0f / 362880);
  p = fma(p, x, splat(1.0f / 40320));
  p = fma(p, x, splat(1.0f / 5040));
  p = fma(p, x, splat(1.0f / 720));
  p = fma(p, x, splat(1.0f / 120));
  p = fma(p, x, splat(1.0f / 24));
  p = fma(p, x, splat(1.0f / 6));
  p = fma(p, x, splat(0.5f));
  return x > splat(-0.5f) ? p * x * x : exp(x) - splat(1.0f) - x;
}

// above * x * x + beta * x where x > 0, else below * (exp(m) - 1 - x) + beta * x, with m = min(x, eps).
// Source: Huang and Schlag 2024, Deriving Activation Functions Using Integration (arXiv 2411.13010);
// eps is from its published code.
inline V xielu(V x, V above, V below, V beta, V eps) {
  const V m = min(x, eps);
  const V left = below * (exp_beyond_line(m) + (m - x)), right = above * x * x;
  return fma(beta, x, x > V{} ? right : left);
}

// gelu(x) = x * Phi(x). The values are those of graph/legal.py.
enum class GeluForm : int64_t { erf = 0, tanh = 1, sigmoid = 2 };

// Phi by erfc, to 1e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
inline V gelu_erf(V x) {
  const V z = max(x, V{} - x) * splat(0.70710678118654752f), t = splat(1.0f) / fma(z, splat(0.3275911f), splat(1.0f));
  V p = fma(t, splat(1.061405429f), splat(-1.453152027f));
  p = fma(t, p, splat(1.421413741f));
  p = fma(t, p, splat(-0.284496736f));
  p = fma(t, p, splat(0.254829592f));
  const V half = splat(0.5f) * t * p * exp(V{} - z * z);
  return x * (x < V{} ? half : splat(1.0f) - half);
}

// 0.5 * (1 + tanh(u)) is sigmoid(2 u).
inline V gelu_tanh(V x) { return x / (splat(1.0f) + exp(splat(-1.59576912160573071f) * fma(splat(0.044715f) * x * x, x, x))); }

inline V gelu_sigmoid(V x) { return x / (splat(1.0f) + exp(splat(-1.702f) * x)); }

// Calls `body` with the function of this form, so that the loop inside is compiled for each form.
template <class Body>
inline void with_gelu(int64_t form, Body body) {
  switch (static_cast<GeluForm>(form)) {
    case GeluForm::erf: return body([](V x) { return gelu_erf(x); });
    case GeluForm::tanh: return body([](V x) { return gelu_tanh(x); });
    case GeluForm::sigmoid: return body([](V x) { return gelu_sigmoid(x); });
  }
}

// cos and sin of position * inv_freq (the product rounded to float32, as the reference does), times scale.
// Reduction and polynomials are in double, accurate for angles up to 2^30;
// the loop is branch-free, so that compilers vectorise it.
inline void rope_angles(int32_t position, const float* inv_freq, int64_t half, double scale, float* cosines, float* sines) {
  constexpr double kTwoOverPi = 0.63661977236758134308, kRound = 6755399441055744.0;  // 1.5 * 2^52
  constexpr double kHalfPiHigh = 1.57079632673412561417, kHalfPiLow = 6.07710050650619224932e-11;
  for (int64_t i = 0; i < half; ++i) {
    const float product = static_cast<float>(position) * inv_freq[i];
    const double angle = product;
    const double shifted = angle * kTwoOverPi + kRound;
    const double n = shifted - kRound;
    int64_t quadrant;
    std::memcpy(&quadrant, &shifted, sizeof quadrant);
    const double r = (angle - n * kHalfPiHigh) - n * kHalfPiLow;
    const double s = r * r;
    const double sine = r + r * s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880 - s / 39916800))));
    const double cosine = 1 + s * (-0.5 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320 - s / 3628800))));
    const bool swapped = quadrant & 1;
    const double c = swapped ? sine : cosine;
    const double d = swapped ? cosine : sine;
    cosines[i] = static_cast<float>(((quadrant + 1) & 2 ? -c : c) * scale);
    sines[i] = static_cast<float>((quadrant & 2 ? -d : d) * scale);
  }
}

}  // namespace coterie::COTERIE_ISA
