// The instruction sets that were compiled in, and which of them this machine has.
#pragma once

#include <span>

#include "kernel.h"

namespace coterie {

// Slowest first; the last one that the machine supports is the default.
std::span<const Isa> compiled_isas();

// Whether kernels of the default one multiply bfloat16 and add in one instruction (AVX512-BF16).
bool has_bf16_products();

}  // namespace coterie
