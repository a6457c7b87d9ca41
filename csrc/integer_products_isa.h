// AVX2's functions of integer_products.h, for callers outside its namespace: the AVX-512 kernels on CPUs without integer dot
// products (VNNI), and tests. Records are as large as AVX-512's, panels and sums no larger.
// Knows nothing about ops or how work is shared out.
#pragma once

#include "instruction.h"

namespace coterie::avx2 {

// As in integer_products.h.
void put_records(const float* x, int64_t K, int64_t dtype, int64_t token, int64_t tokens, bool many, uint8_t* records);

// whole_tile() with nothing wider than 256 bits, with AVX-VNNI or without it: tests call both.
void narrow_tile(bool vnni, bytes* records, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride,
                 float* panel, float* sums);

}  // namespace coterie::avx2
