// Functions of integer_products.h, and variants of them, for callers outside the namespace of their instruction set:
// the AVX-512 kernels call AVX2's on CPUs without integer dot products (VNNI), and tests call all of them. AVX2's
// records are as large as AVX-512's, its panels and sums no larger.
// Knows nothing about ops or how work is shared out.
#pragma once

#include "instruction.h"
#include "panel_work.h"

namespace coterie::avx2 {

// As in integer_products.h.
void put_records(const float* x, int64_t K, int64_t dtype, int64_t token, int64_t tokens, bool many, uint8_t* records);

// integer_tile() with nothing wider than 256 bits, with AVX-VNNI or without it: tests call both.
void narrow_tile(bool vnni, bytes* records, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride,
                 float* panel, float* sums);

}  // namespace coterie::avx2

namespace coterie::avx512 {

// As in integer_products.h.
void put_records(const float* x, int64_t K, int64_t dtype, int64_t token, int64_t tokens, bool many, uint8_t* records);
void integer_tile(bytes* records, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride, const Work& work);

}  // namespace coterie::avx512

namespace coterie::neon {

// As in integer_products.h.
void put_records(const float* x, int64_t K, int64_t dtype, int64_t token, int64_t tokens, bool many, uint8_t* records);

// The records of one token, and integer_tile(), for byte dot products or without them: tests call both.
void put_narrow(bool dot, const float* x, int64_t K, int64_t dtype, uint8_t* record);
void narrow_tile(bool dot, bytes* records, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride);

}  // namespace coterie::neon
