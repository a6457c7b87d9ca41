// Reads: every byte arrives once at its place however ranges are divided, and what is not in the file is reported.
#include "../../csrc/reads.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>

#include "testing.h"

namespace testing {

namespace {

constexpr int64_t kBlock = 4096;

struct Aligned {
  explicit Aligned(int64_t size) : at(static_cast<uint8_t*>(std::aligned_alloc(kBlock, static_cast<size_t>(size)))) { std::memset(at, 0, static_cast<size_t>(size)); }
  ~Aligned() { std::free(at); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  uint8_t* at;
};

// Writes a file to be read without direct I/O, which not all file systems and sanitizers support.
int written(const std::vector<uint8_t>& data) {
  char name[] = "/tmp/coterie-reads-XXXXXX";
  const int file = mkstemp(name);
  unlink(name);
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t count = write(file, data.data() + done, data.size() - done);
    if (count <= 0) break;
    done += static_cast<size_t>(count);
  }
  return file;
}

void test_bytes(Reads& reads) {
  const int64_t blocks = 12 * kPieceBytes / kBlock + 5, size = blocks * kBlock - 100;
  std::vector<uint8_t> data(static_cast<size_t>(size));
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(rng()());
  const int file = written(data);
  Aligned memory(blocks * kBlock);
  std::vector<Part> odd;  // every second block of the first 300: more than may be in flight
  for (int64_t block = 0; block < 300; block += 2) odd.push_back({block * kBlock, (block + 1) * kBlock});
  const Part rest{300 * kBlock, blocks * kBlock}, even{0, 300 * kBlock};
  const Range range{file, memory.at, 0, size};
  reads.add(7, range, odd.data(), odd.size(), true);
  reads.add(8, range, &rest, 1, false);
  check(reads.scattered() == kReadsAtOnce && reads.long_bytes() == 0, "scattered parts are begun at once, and nothing behind them");
  Reads::Ended ended{};
  check(reads.next(ended) && ended.tag == 7 && ended.whole, "scattered parts end first");
  check(reads.scattered() == 0 && reads.long_bytes() == kFirstBytes, "then long parts are begun");
  bool right = true;
  for (int64_t at = 0; at < 300 * kBlock; ++at) right = right && memory.at[at] == (at / kBlock % 2 == 0 ? data[static_cast<size_t>(at)] : 0);
  check(right, "scattered parts are where they belong, and nothing else");
  reads.add(9, range, &even, 1, false);
  for (int64_t tag : {8, 9}) check(reads.next(ended) && ended.tag == tag && ended.whole, "long parts end whole");
  check(std::memcmp(memory.at, data.data(), data.size()) == 0, "all bytes are there");
  check(!reads.next(ended), "there is no more");
  ::close(file);
}

// With pieces of one block: 2 are in flight at first, and one more after every few completions, up to 4;
// anew after idleness.
void test_window() {
  Reads reads(kBlock, 2 * kBlock, 4 * kBlock);
  constexpr int64_t kSize = 40 * kBlock, kCut = 2 * kEndsForMore * kBlock;
  const std::vector<uint8_t> data(kSize);
  const int file = written(data);
  Aligned memory(kSize);
  const Range range{file, memory.at, 0, kSize};
  const Part first{0, kCut}, rest{kCut, kSize};
  Reads::Ended ended{};
  for (int64_t round = 0; round < 2; ++round) {
    reads.add(2 * round, range, &first, 1, false);
    reads.add(2 * round + 1, range, &rest, 1, false);
    check(reads.long_bytes() == 2 * kBlock, "few pieces are begun at first");
    check(reads.next(ended) && ended.tag == 2 * round && ended.whole, "the first range ends first");
    check(reads.long_bytes() == 4 * kBlock, "then more are under way");
    check(reads.next(ended) && ended.tag == 2 * round + 1 && ended.whole, "and the second one after it");
    check(reads.long_bytes() == 0, "and nothing is left under way");
  }
  ::close(file);
}

void test_failures(Reads& reads) {
  const std::vector<uint8_t> data(2 * kBlock);
  const int file = written(data);
  Aligned memory(4 * kBlock);
  const Part all{0, 4 * kBlock}, none{kBlock, kBlock};
  Reads::Ended ended{};
  reads.add(1, {file, memory.at, 0, 4 * kBlock}, &all, 1, false);
  check(reads.next(ended) && ended.tag == 1 && !ended.whole, "a file that ends early is not read whole");
  reads.add(6, {file, memory.at, 0, 2 * kBlock + 1}, &all, 1, false);
  check(reads.next(ended) && ended.tag == 6 && !ended.whole, "nor is one that ends a byte early");
  // The first part's memory cannot be written; the second one's, which completes last, can.
  const std::vector<Part> both{{0, kBlock}, {kBlock, 2 * kBlock}};
  if (mprotect(memory.at, kBlock, PROT_NONE) == 0) {  // fails where pages are larger
    reads.add(7, {file, memory.at, 0, 2 * kBlock}, both.data(), both.size(), true);
    check(reads.next(ended) && ended.tag == 7 && !ended.whole, "one part that is not read is enough");
    mprotect(memory.at, kBlock, PROT_READ | PROT_WRITE);
  }
  reads.add(2, {-1, memory.at, 0, 4 * kBlock}, &all, 1, true);
  check(reads.next(ended) && ended.tag == 2 && !ended.whole, "a file that is not open is not read");
  // Refused before memory is looked at: more pieces than are submitted at once.
  const Part many_pieces{0, 2 * kLongBytes};
  const std::vector<Part> many_parts(3 * kReadsAtOnce, Part{0, kBlock});
  reads.add(4, {-1, memory.at, 0, 2 * kLongBytes}, &many_pieces, 1, false);
  check(reads.next(ended) && ended.tag == 4 && !ended.whole, "all pieces of a file that is not open are refused, then it ends");
  reads.add(5, {-1, memory.at, 0, kBlock}, many_parts.data(), many_parts.size(), true);
  check(reads.next(ended) && ended.tag == 5 && !ended.whole, "and all scattered ones");
  reads.add(3, {file, memory.at, 0, 4 * kBlock}, &none, 1, false);
  check(reads.next(ended) && ended.tag == 3 && ended.whole, "nothing is read at once");
  check(!reads.next(ended), "there is no more");
  check(reads.scattered() == 0 && reads.long_bytes() == 0, "nothing is left under way");
  ::close(file);
}

}  // namespace

void test_reads() {
  try {
    Reads reads;
    test_bytes(reads);
    test_window();
    test_failures(reads);
  } catch (const std::runtime_error& error) {
    std::printf("no test of reads: %s\n", error.what());
  }
}

}  // namespace testing
