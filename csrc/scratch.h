// Scratch: a thread's private memory for tiles, which also counts the bytes stored anywhere else. Shared: memory that
// the threads of a team share while they work on one instruction.
// Knows nothing about kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace coterie {

constexpr size_t kLine = 64;

constexpr size_t padded(size_t size_bytes) { return (size_bytes + kLine - 1) / kLine * kLine; }

// Zeroed when allocated; a kernel that keeps counters in it resets them to zero.
// It grows before a list starts, never while kernels run.
class Shared {
 public:
  Shared() = default;
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { std::free(memory_); }

  // calloc maps a large block as zero pages: only those that kernels write take physical memory.
  void grow(size_t size_bytes) {
    if (size_bytes <= size_) return;
    std::free(memory_);
    size_ = 0;
    memory_ = std::calloc(size_bytes + kLine, 1);
    if (memory_ == nullptr) throw std::bad_alloc();
    size_ = size_bytes;
  }

  size_t size_bytes() const { return size_; }
  uint8_t* base() const { return reinterpret_cast<uint8_t*>(padded(reinterpret_cast<uintptr_t>(memory_))); }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(base_); }

  // Makes room for a kernel's tiles. Called before a list starts, never while kernels run.
  void grow(size_t size_bytes) {
    if (size_bytes <= size_) return;
    std::free(base_);
    size_ = padded(size_bytes);
    base_ = static_cast<uint8_t*>(std::aligned_alloc(kLine, size_));
    if (base_ == nullptr) {
      size_ = 0;
      throw std::bad_alloc();
    }
    forget();
  }

  // Each unit allocates its tiles anew and in the same order, so that `holds` can find those of the unit before.
  void rewind(size_t to = 0) { used_ = to; }
  size_t used() const { return used_; }

  float* floats(int64_t count) {
    auto* tile = reinterpret_cast<float*>(base_ + used_);
    used_ += padded(static_cast<size_t>(count) * sizeof(float));
    if (used_ > high_water_) high_water_ = used_;
    return tile;
  }

  // True if this thread's previous unit of this instruction left this tile in place;
  // otherwise records that it is about to be filled.
  bool holds(int64_t tile) {
    const bool same = tile_ == tile;
    tile_ = tile;
    return same;
  }

  void forget() { tile_ = -1, begins_ = true; }

  // True the first time a thread asks within an instruction, then false.
  bool begins() {
    const bool begins = begins_;
    begins_ = false;
    return begins;
  }

  // The memory that the team's threads share, and their number.
  void share(uint8_t* memory, int64_t threads) { shared_ = memory, threads_ = threads; }
  uint8_t* shared() const { return shared_; }
  int64_t threads() const { return threads_; }

  void stored(int64_t size_bytes) { stored_bytes_ += size_bytes; }

  size_t size_bytes() const { return size_; }
  int64_t stored_bytes() const { return stored_bytes_; }
  size_t high_water_bytes() const { return high_water_; }
  void reset_counters() { stored_bytes_ = 0, high_water_ = 0; }

 private:
  uint8_t* base_ = nullptr;
  size_t size_ = 0;
  size_t used_ = 0;
  size_t high_water_ = 0;
  int64_t stored_bytes_ = 0;
  int64_t tile_ = -1, threads_ = 1;
  uint8_t* shared_ = nullptr;
  bool begins_ = true;
};

}  // namespace coterie
