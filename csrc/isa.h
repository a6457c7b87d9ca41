// The instruction sets that were compiled in, and which of them this machine supports.
#pragma once

#include <span>

#include "kernel.h"

namespace coterie {

// Slowest first; the last one that the machine supports is the default.
std::span<const Isa> compiled_isas();

// Whether the kernels of the default instruction set use bfloat16 dot-product instructions (AVX512-BF16).
bool has_bf16_products();

}  // namespace coterie
