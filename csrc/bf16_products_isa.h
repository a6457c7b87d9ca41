// Functions of bf16_products.h and attend_bf16.h for tests, which are outside the namespace of the instruction set.
// Knows nothing about ops or how work is shared out.
#pragma once

#include "attend_span.h"

namespace coterie::avx512 {

// As in bf16_products.h and attend_bf16.h.
void put_rounded(const float* x, int64_t K, int64_t token, int64_t tokens, bool many, float* out);
void round_query(float* row, int64_t width);
void copy_bf16(const Span& span, int64_t first, int64_t last, Copy& copy);

// With AVX512-BF16 if `native`, else with two FMAs, whatever the dispatch would choose.
void bf16_tile(bool native, const float* rounded, int64_t tokens, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride, float* sums);
void attend_bf16(bool native, const Copy& copy, const Span& span, const Query* queries, int64_t count, float scale, float cap, float* scores);

}  // namespace coterie::avx512
