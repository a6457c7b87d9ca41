#include "tokens.h"

namespace coterie::modelled {

namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15, kMix1 = 0xBF58476D1CE4E5B9, kMix2 = 0x94D049BB133111EB;  // splitmix64's

uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * kMix1;
  x = (x ^ (x >> 27)) * kMix2;
  return x ^ (x >> 31);
}

}  // namespace

int32_t token_at(uint64_t seed, uint64_t position, double vocab_size) {
  const uint64_t key = mixed(mixed(seed + kGolden) + kGolden * (position + 1));
  return static_cast<int32_t>(static_cast<double>(key >> 11) * 0x1p-53 * vocab_size);
}

}  // namespace coterie::modelled
