// Synthetic tokens: what a device without numbers answers. The Python of it is devices/modelled/tokens.py.
// Knows nothing about time, programs, or Python.
#pragma once

#include <cstdint>

namespace coterie::modelled {

// The token that follows `position` in a row of this seed: a function of both alone.
int32_t token_at(uint64_t seed, uint64_t position, double vocab_size);

}  // namespace coterie::modelled
