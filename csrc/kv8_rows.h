// Rows of pages of any type, kv8 included: where a head's channels are, how they are stored and how they are read.
// Knows nothing about who owns the pages.
#pragma once

#include <algorithm>

#include "kv8.h"
#include "pages.h"

namespace coterie::COTERIE_ISA {

// Address of channel 0, or of the first block. A row of kv8 is placed as a row of bfloat16 of as many bytes would be.
template <class Op>
inline uint8_t* row_address(const Op& op, int64_t sequence, int64_t position, KeyOrValue part, int64_t kv_head) {
  if (!is_kv8(op.kv_dtype)) return page_address(op, sequence, position, part, kv_head);
  Op as_bf16 = op;
  as_bf16.kv_dtype = static_cast<int64_t>(DType::bf16), as_bf16.C = page_row_bytes(op.kv_dtype, op.C) / 2;
  return page_address(as_bf16, sequence, position, part, kv_head);
}

// Quantises up to 32 channels to a block of kv8, scaled by the largest magnitude and rounded to nearest. One that is
// not finite makes all of them NaN.
inline void store_block(uint8_t* at, const float* x, int64_t count) {
  uint32_t largest = 0;
  for (int64_t c = 0; c < count; ++c) largest = std::max(largest, to_bits(x[c]) & 0x7FFFFFFFu);
  const uint16_t half = narrow_bf16(from_bits(largest) / 127.0f);
  const float scale = widen_bf16(half);
  const bool finite = scale > 0.0f && scale <= 0x1p127f;
  std::memcpy(at, &half, sizeof half);
  for (int64_t c = 0; c < kBlockChannels; ++c) {
    const float exact = c < count && finite ? x[c] / scale : 0.0f;
    const float nearest = (exact + 0x1.8p23f) - 0x1.8p23f;  // if the scale was rounded down, up to 127.5
    at[2 + c] = static_cast<uint8_t>(static_cast<int8_t>(nearest > 127.0f ? 127.0f : nearest < -127.0f ? -127.0f : nearest));
  }
}

// Stores one head of C channels, rounded to the pages' type.
inline void store_row(uint8_t* at, const float* x, int64_t C, int64_t dtype) {
  if (!is_kv8(dtype)) return store_page(at, x, C, dtype);
  for (int64_t c = 0; c < C; c += kBlockChannels, at += kBlockBytes) store_block(at, x + c, std::min(C - c, kBlockChannels));
}

// Bytes of a stored number, without the scales of kv8.
template <DType D>
constexpr int64_t stored_size = D == kKv8 ? 1 : D == DType::f32 ? 4 : 2;

template <DType D>
constexpr int64_t stored_bytes(int64_t numbers) {
  return D == kKv8 ? numbers * kBlockBytes / kBlockChannels : numbers * stored_size<D>;
}

// W int8, widened.
inline V load_int8(bytes* at) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
#elif defined(COTERIE_NEON)
  int32_t four;  // a row may end after these
  std::memcpy(&four, at, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
#else
  V v{};
  for (int i = 0; i < W; ++i) v[i] = static_cast<float>(static_cast<int8_t>(at[i]));
  return v;
#endif
}

// A scale in all lanes.
inline V load_scale(bytes* at) { return splat(widen<DType::bf16>(at)); }

// W channels of a stored row, from c (a multiple of W) on.
template <DType D>
inline V load_stored(bytes* row, int64_t c) {
  if constexpr (D == kKv8) {
    bytes* block = row + c / kBlockChannels * kBlockBytes;
    return load_int8(block + 2 + c % kBlockChannels) * load_scale(block);
  } else {
    return load_weights<D>(row + c * stored_size<D>);
  }
}

// N vectors of channels of a stored row, from c (a multiple of N * W) on. The scale of a block of kv8 is loaded once.
template <DType D, int N>
class StoredVectors {
 public:
  StoredVectors(bytes* row, int64_t c) : at_(kBlocks ? row + c / kBlockChannels * kBlockBytes : row + c * stored_size<D>) {
    if constexpr (kBlocks) numbers_ = at_ + 2 + (N * W < kBlockChannels ? c % kBlockChannels : 0);
  }

  // Must be called with ascending n.
  V operator[](int n) {
    if constexpr (!kBlocks) return load_weights<D>(at_ + n * W * stored_size<D>);
    const int64_t block = n * W / kBlockChannels;
    if (n * W % kBlockChannels == 0) scale_ = load_scale(at_ + block * kBlockBytes);
    return load_int8(numbers_ + block * (kBlockBytes - kBlockChannels) + n * W) * scale_;
  }

 private:
  static constexpr bool kBlocks = D == kKv8;
  bytes *at_, *numbers_ = nullptr;
  V scale_{};
};

// The last `count` < W channels; the other lanes are zero, or for kv8 whatever the block has there. Out of line: few
// heads have such channels, and every loop over keys would have sixteen copies.
template <DType D>
[[gnu::noinline]] inline V load_stored_part(bytes* row, int64_t c, int64_t count) {
  if constexpr (D == kKv8) return load_stored<D>(row, c);
  else return load_weights_part<D>(row + c * stored_size<D>, count);
}

// Calls `body` with the pages' type as a template argument.
template <class Body>
inline void with_stored(int64_t dtype, Body body) {
  if (is_kv8(dtype)) return body.template operator()<kKv8>();
  with_dtype(dtype, body);
}
}  // namespace coterie::COTERIE_ISA
