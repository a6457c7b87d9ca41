// Logits from the highest down, as far as somebody asks: what drawing needs of a vocabulary is mostly its first few.
// Knows nothing about settings or random numbers.
//
//   highest ----- 2 ----- 4 ----- 8 ----- 16 ------------ -inf       bands below the highest, found by one scan each
//   indices  | band 0   | band 1  | ...                              put in order when somebody asks for one of them
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace coterie {

// What every machine has.
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(16)));
typedef int64_t Wholes __attribute__((vector_size(16)));

inline Floats floats_at(const float* z) {
  Floats x;
  std::memcpy(&x, z, sizeof x);
  return x;
}

// exp(x) for x <= 0 with a relative error of about 2^-52; 0 below -700. x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor
// polynomial of degree 13 (remainder below 2^-57), then 2^n by the exponent.
inline Doubles exp_below(Doubles x) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves the nearest integer in the low bits
  constexpr double kFactors[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                                 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
  const Wholes far = x < -700.0;
  x = Doubles(Wholes(x) & ~far);
  const Doubles shifted = x * 1.44269504088896340736 + kRound, n = shifted - kRound;
  const Doubles r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  Doubles p = Doubles{} + kFactors[0];
  for (int k = 1; k < 14; ++k) p = p * r + kFactors[k];
  return Doubles((Wholes(p) + (Wholes(shifted) << 52)) & ~far);
}

// The sum of exp(z - highest), in one order.
inline double weigh(const float* z, int64_t V, double highest) {
  constexpr int kChains = 4;  // sums side by side
  Doubles sums[kChains] = {};
  int64_t i = 0;
  for (; i + 2 * kChains <= V; i += 2 * kChains)
    for (int k = 0; k < kChains; k += 2) {
      const Floats x = floats_at(z + i + 2 * k);
      sums[k] += exp_below(Doubles{x[0], x[1]} - highest);
      sums[k + 1] += exp_below(Doubles{x[2], x[3]} - highest);
    }
  const Doubles all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double total = all[0] + all[1];
  for (; i < V; ++i) total += std::exp(z[i] - highest);
  return total;
}

// z descending, then index ascending; reversed for a heap, whose top is its greatest.
struct Before {
  const float* z;
  bool operator()(int32_t a, int32_t b) const { return z[a] != z[b] ? z[a] > z[b] : a < b; }
};

struct After {
  const float* z;
  bool operator()(int32_t a, int32_t b) const { return z[a] != z[b] ? z[a] < z[b] : a > b; }
};

// Hands out the `keep` best indices in order. None of z is a NaN.
class Order {
 public:
  Order(const float* z, float highest, int32_t* indices, int64_t V, int64_t keep) : z_(z), highest_(highest), indices_(indices), V_(V), keep_(keep) {}

  // Finds all that are kept, in no order: sums exp(z - highest) over them.
  double weigh_kept() {
    while (ends_[bands_] < keep_ && bands_ < kBands) find_band();
    double total = 0;
    for (int64_t i = 0; i < ends_[bands_]; ++i) total += std::exp(static_cast<double>(z_[indices_[i]]) - highest_);
    return total;
  }

  int32_t next() {
    if (handed_ == ends_[band_]) {  // of the bands so far; some may have nothing
      do {
        if (band_ == bands_) find_band();
        ++band_;
      } while (ends_[band_] == handed_ && band_ < kBands);
      std::make_heap(indices_ + handed_, indices_ + ends_[band_], After{z_});
    }
    // Popping moves the best to the end of what is left of the band.
    std::pop_heap(indices_ + ends_[band_ - 1], indices_ + ends_[band_ - 1] + (ends_[band_] - handed_), After{z_});
    return at(handed_++);
  }

  // The one that was handed out as number n, from 0 on.
  int32_t at(int64_t n) const {
    int band = 1;
    while (ends_[band] <= n) ++band;
    return indices_[ends_[band] - 1 - (n - ends_[band - 1])];
  }

 private:
  static constexpr int kBands = 5;

  // Appends what lies between the last floor and the next one; of the last band that is kept only the best.
  void find_band() {
    constexpr float kDepths[kBands] = {2, 4, 8, 16, std::numeric_limits<float>::infinity()};
    const float floor = highest_ - kDepths[bands_];
    int64_t end = ends_[bands_];
    const bool last = !(floor > -std::numeric_limits<float>::infinity()) || bands_ == kBands - 1;
    int64_t i = 0;
    for (; i + kStep <= V_; i += kStep)
      if (last || any_at_least(z_ + i, floor))
        for (int64_t j = i; j < i + kStep; ++j) end = take(j, floor, last, end);
    for (; i < V_; ++i) end = take(i, floor, last, end);
    ceiling_ = floor;
    ++bands_;
    if (end > keep_) {
      std::nth_element(indices_ + ends_[bands_ - 1], indices_ + keep_, indices_ + end, Before{z_});
      end = keep_;
    }
    ends_[bands_] = end;
  }

  int64_t take(int64_t i, float floor, bool last, int64_t end) const {
    indices_[end] = static_cast<int32_t>(i);
    return end + ((last || z_[i] >= floor) && (bands_ == 0 || z_[i] < ceiling_) ? 1 : 0);
  }

  static constexpr int64_t kStep = 16;
  static bool any_at_least(const float* z, float floor) {
    Mask any = {};
    for (int k = 0; k < kStep; k += 4) any |= floats_at(z + k) >= floor;
    return (any[0] | any[1] | any[2] | any[3]) != 0;
  }

  const float* z_;
  const float highest_;
  int32_t* indices_;  // room for V + 1
  const int64_t V_, keep_;
  float ceiling_ = 0;
  int bands_ = 0, band_ = 0;        // found; the one that is handed out
  int64_t ends_[kBands + 1] = {0};  // of the bands that are found, the first one's behind a 0
  int64_t handed_ = 0;
};

}  // namespace coterie
