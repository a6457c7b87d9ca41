// How threads wait for one another: a short spin, then sleep in the kernel on a 32-bit word.
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

// Some tens of microseconds: what wakes a sleeper costs about as much. Longer waits sleep, so that a busy neighbour may run, and so
// that a descheduled thread which is waited for may move to the waiter's core.
constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // some tens of cycles; most such processors take `yield` for nothing, so that threads would soon sleep
#endif
}

// Sleeps while the word is `old`. May return early: callers look again.
inline void sleep_on(uint32_t& word, uint32_t old) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
#else
  std::atomic_ref<uint32_t>(word).wait(old);
#endif
}

// Wakes whoever sleeps on the word; call it after the word was changed.
inline void wake_all(uint32_t& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  std::atomic_ref<uint32_t>(word).notify_all();
#endif
}

// Something that threads sleep at until what they watch has changed. The watched atomic is changed, and looked at by those who are
// about to sleep, in the one order of seq_cst: so either the changer sees a sleeper, or the sleeper sees the change.
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
