// Sorts z = logits / temperature in descending order, lazily: drawing mostly needs the first few of a vocabulary.
// Writes nothing but their indices. Knows nothing about settings or random numbers.
//
//   highest ----- 2 ----- 4 ----- 8 ----- 16 ------------ -inf       bands below the highest, found by one scan each
//   indices  | band 0   | band 1  | ...                              ordered (by a heap) once one of them is asked for
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace coterie {

// Vectors that every machine has.
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(16)));
typedef int64_t Integers __attribute__((vector_size(16)));

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
  const Integers far = x < -700.0;
  x = Doubles(Integers(x) & ~far);
  const Doubles shifted = x * 1.44269504088896340736 + kRound, n = shifted - kRound;
  const Doubles r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  Doubles p = Doubles{} + kFactors[0];
  for (int k = 1; k < 14; ++k) p = p * r + kFactors[k];
  return Doubles((Integers(p) + (Integers(shifted) << 52)) & ~far);
}

// A row of logits without NaNs, and their z.
struct Scaled {
  const float* logits;
  int64_t V;
  float temperature, highest;  // highest z

  float z(int64_t i) const { return logits[i] / temperature; }
  double weight(int64_t i) const { return std::exp(static_cast<double>(z(i)) - highest); }
};

// The sum of exp(z - highest), always in the same order.
inline double weigh(const Scaled& row) {
  const int64_t V = row.V;
  const double highest = row.highest;
  constexpr int kChains = 4;  // independent accumulators
  Doubles sums[kChains] = {};
  int64_t i = 0;
  for (; i + 2 * kChains <= V; i += 2 * kChains)
    for (int k = 0; k < kChains; k += 2) {
      const Floats x = floats_at(row.logits + i + 2 * k) / row.temperature;
      sums[k] += exp_below(Doubles{x[0], x[1]} - highest);
      sums[k + 1] += exp_below(Doubles{x[2], x[3]} - highest);
    }
  const Doubles all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double total = all[0] + all[1];
  for (; i < V; ++i) total += row.weight(i);
  return total;
}

// z descending, then index ascending. After is its reverse, for a heap whose top is the best.
struct Before {
  const Scaled& row;
  bool operator()(int32_t a, int32_t b) const {
    const float za = row.z(a), zb = row.z(b);
    return za != zb ? za > zb : a < b;
  }
};

struct After {
  const Scaled& row;
  bool operator()(int32_t a, int32_t b) const { return Before{row}(b, a); }
};

// Hands out the `keep` best indices in order. `indices` needs room for V + 1.
class Order {
 public:
  Order(const Scaled& row, int32_t* indices, int64_t keep) : row_(row), indices_(indices), keep_(keep) {}

  // Finds the `keep` best as one band, and returns the sum of exp(z - highest) over them. For a `keep` below V.
  double weigh_kept() {
    const int64_t V = row_.V;
    float floor = -INFINITY, least = -INFINITY;
    bool full = false;  // `keep` candidates are selected, and floor is the least z among them
    int64_t end = 0, i = 0;
    const auto take = [&](int64_t j) {
      indices_[end] = static_cast<int32_t>(j);
      end += !full || row_.z(j) > floor ? 1 : 0;
    };
    for (; i + kStep <= V; i += kStep) {
      if (full && !any_at_least(row_.logits + i, least)) continue;
      for (int64_t j = i; j < i + kStep; ++j) take(j);
      if (end < 2 * keep_ + kStep) continue;
      std::nth_element(indices_, indices_ + (keep_ - 1), indices_ + end, Before{row_});
      end = keep_, full = true;
      floor = row_.z(indices_[keep_ - 1]), least = least_of(floor);
    }
    for (; i < V; ++i) take(i);
    if (end > keep_) std::nth_element(indices_, indices_ + keep_, indices_ + end, Before{row_});
    bands_ = 1, ends_[1] = keep_;
    double total = 0;
    for (int64_t k = 0; k < keep_; ++k) total += row_.weight(indices_[k]);
    return total;
  }

  int32_t next() {
    if (handed_ == ends_[band_]) {  // the current band is used up; the next ones may be empty
      do {
        if (band_ == bands_) find_band();
        ++band_;
      } while (ends_[band_] == handed_ && band_ < kBands);
      std::make_heap(indices_ + handed_, indices_ + ends_[band_], After{row_});
    }
    // Popping moves the best to the end of the remaining part of the band.
    std::pop_heap(indices_ + ends_[band_ - 1], indices_ + ends_[band_ - 1] + (ends_[band_] - handed_), After{row_});
    return at(handed_++);
  }

  // The index that was handed out as number n, from 0 on.
  int32_t at(int64_t n) const {
    int band = 1;
    while (ends_[band] <= n) ++band;
    return indices_[ends_[band] - 1 - (n - ends_[band - 1])];
  }

 private:
  static constexpr int kBands = 5;

  // Appends the indices between the last floor and the next one.
  void find_band() {
    constexpr float kDepths[kBands] = {2, 4, 8, 16, INFINITY};
    const float floor = row_.highest - kDepths[bands_];
    const float* logits = row_.logits;
    int64_t end = ends_[bands_];
    const bool last = !(floor > -INFINITY) || bands_ == kBands - 1;
    const float least = least_of(floor);
    int64_t i = 0;
    for (; i + kStep <= row_.V; i += kStep)
      if (last || any_at_least(logits + i, least))
        for (int64_t j = i; j < i + kStep; ++j) end = take(j, floor, last, end);
    for (; i < row_.V; ++i) end = take(i, floor, last, end);
    ceiling_ = floor;
    ends_[++bands_] = end;
  }

  int64_t take(int64_t i, float floor, bool last, int64_t end) const {
    indices_[end] = static_cast<int32_t>(i);
    const float z = row_.z(i);
    return end + ((last || z >= floor) && (bands_ == 0 || z < ceiling_) ? 1 : 0);
  }

  // A lower bound of the logits whose z is at least `floor`: its margin is larger than the rounding of a division.
  float least_of(float floor) const {
    const double scaled = static_cast<double>(floor) * row_.temperature;
    return static_cast<float>(std::isfinite(scaled) ? scaled - std::abs(scaled) * 0x1p-21 - 1e-37 : -INFINITY);
  }

  static constexpr int64_t kStep = 16;
  static bool any_at_least(const float* logits, float least) {
    Mask any = {};
    for (int k = 0; k < kStep; k += 4) any |= floats_at(logits + k) >= least;
    return (any[0] | any[1] | any[2] | any[3]) != 0;
  }

  const Scaled& row_;
  int32_t* indices_;
  const int64_t keep_;
  float ceiling_ = 0;
  int bands_ = 0, band_ = 0;        // bands found, and the one being handed out
  int64_t ends_[kBands + 1] = {0};  // after a leading 0, the end of each band
  int64_t handed_ = 0;
};

}  // namespace coterie
