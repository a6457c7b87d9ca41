// How threads wait for one another: a short spin, then sleep in the operating system on a 32-bit word (a futex).
// Knows nothing about what is waited for.
#pragma once

#include <atomic>
#include <climits>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace coterie {

// Some tens of microseconds: waking a sleeper costs about as much. Longer waits sleep, so that other processes may run,
// and so that a descheduled thread that is being waited for may move to the waiter's core.
constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // some tens of cycles; `yield` is a no-op on most of these processors, so that spinning would end too soon
#endif
}

// Sleeps while the word is `old`. May return spuriously: callers check again.
inline void sleep_on(uint32_t& word, uint32_t old) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
#else
  std::atomic_ref<uint32_t>(word).wait(old);
#endif
}

// Wakes all threads that sleep on the word; call it after changing the word.
inline void wake_all(uint32_t& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  std::atomic_ref<uint32_t>(word).notify_all();
#endif
}

// Lets threads sleep until an atomic that they watch has changed. The changer stores it and a sleeper loads it with
// seq_cst, in one total order with `sleepers_`: so either the changer sees a sleeper, or the sleeper sees the change.
//
//   changer:  watched.store(new); bell.ring()        ring() costs one load when nobody sleeps
//   sleeper:  bell.sleep_until([&] { return watched.load() != old; })
class Bell {
 public:
  template <class Changed>
  void sleep_until(Changed changed) {
    sleepers_.fetch_add(1);
    while (true) {
      const uint32_t rung = std::atomic_ref(rung_).load();
      if (changed()) break;
      sleep_on(rung_, rung);
    }
    sleepers_.fetch_sub(1);
  }

  void ring() {
    if (sleepers_.load() == 0) return;
    std::atomic_ref(rung_).fetch_add(1);
    wake_all(rung_);
  }

 private:
  std::atomic<int32_t> sleepers_{0};
  uint32_t rung_ = 0;
};

}  // namespace coterie
