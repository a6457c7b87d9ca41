// exp, sigmoid and the angles of rope, with the same bits in every lane and for every blocking.
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
  return of != of ? of : p;  // the clamp took a NaN for -87.3
}

inline V silu(V x) { return x / (splat(1.0f) + exp(V{} - x)); }

// cos and sin of position * inv_freq (the product rounded to float32, as the reference does), times scale.
// Reduction and polynomials are in double, good for angles to 2^30; the loop has no branch, so that compilers vectorise it.
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
