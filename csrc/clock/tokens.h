// Synthetic tokens: what a device that computes no values returns. The Python reference is devices/modelled/tokens.py.
// Knows nothing about time, programs, or Python.
#pragma once

#include <cstdint>

namespace coterie::modelled {

// The token that follows `position` in a row with this seed: a pure function.
int32_t token_at(uint64_t seed, uint64_t position, double vocab_size);

}  // namespace coterie::modelled
