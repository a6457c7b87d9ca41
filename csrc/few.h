// Dot products of few tokens with rows of float32, bfloat16 or float16, which are used as they are read (streams.h).
// Knows nothing about ops or how work is shared out.
#pragma once

#include "streams.h"

namespace coterie::COTERIE_ISA {

// `tokens` x N dot products with the N rows of K weights at `w`; `x` is in the format of dots_streamed.
void few_tile(const float* x, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride);

// `each` rows of every stream, like dots_along.
void few_along(const float* x, int64_t tokens, int64_t dtype, const Rows<3>& rows, int64_t each, int64_t K, float* out, int64_t out_stride,
               int64_t out_step);
void few_along(const float* x, int64_t tokens, int64_t dtype, const Rows<4>& rows, int64_t each, int64_t K, float* out, int64_t out_stride,
               int64_t out_step);

}  // namespace coterie::COTERIE_ISA
