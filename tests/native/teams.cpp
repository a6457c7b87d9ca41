// Teams: gates that open late or fail, several steps with tokens fed back,
// stop tokens and interrupts, starting and stopping.
#include <chrono>
#include <stdexcept>
#include <thread>

#include "plain.h"

namespace testing {

namespace {

// A decoder whose logits depend on a position's token alone: embed, norm and head, sampled.
// Each drawn token depends on those before it.
struct Chain {
  static constexpr int64_t B = 3, D = 40, V = 70, kSteps = 12;
  Tensor table = weight(V, D, DType::bf16), mix = weight(D, D, DType::bf16), scale = norm_weight(D, DType::f32), head = weight(V, D, DType::f16);
  std::vector<i32> tokens, positions, rows{2, 0, 1}, drawn = std::vector<i32>(B), kept = std::vector<i32>(B * kSteps);
  std::vector<i32> ends, first_end = std::vector<i32>(B + 1);
  std::vector<int64_t> settings = std::vector<int64_t>(B * kSettingWords);
  std::vector<float> x = std::vector<float>(B * D), h = std::vector<float>(B * D), logits = std::vector<float>(B * V);
  std::vector<Row> list;
  Feed feed{};

  Chain() {
    for (int64_t b = 0; b < B; ++b) {
      const double temperature = b == 0 ? 0.0 : 1.5, one = 1.0, none = 0.0;
      int64_t* s = &settings[b * kSettingWords];
      std::memcpy(s, &temperature, 8), std::memcpy(s + 2, &one, 8), std::memcpy(s + 3, &none, 8), s[4] = 11 * b;
    }
    list = {
        row_of(Opcode::embed, Embed{nullptr, table.at(), table.type(), x.data(), B, D, 1.0}),
        row_of(Opcode::linear_add, LinearAdd{x.data(), mix.at(), mix.type(), nullptr, 0, h.data(), B, D, D, 1.0, x.data()}),
        row_of(Opcode::take_norm_linear, TakeNormLinear{h.data(), scale.at(), scale.type(), 1e-5, 0.0, nullptr, 0, 0, rows.data(), head.at(), head.type(),
                                                        nullptr, 0, logits.data(), B, D, V, 1.0}),
        row_of(Opcode::sample, Sample{logits.data(), settings.data(), nullptr, rows.data(), drawn.data(), B, V}),
    };
    start(kSteps);
  }

  void start(int64_t steps) {
    tokens = {5, 6, 7}, positions = {0, 10, 3};
    auto embed = operands_of<Embed>(list[0]);
    auto sample = operands_of<Sample>(list[3]);
    embed.tokens = tokens.data(), sample.positions = positions.data();
    std::memcpy(list[0].operands, &embed, sizeof embed), std::memcpy(list[3].operands, &sample, sizeof sample);
    feed = {steps, drawn.data(), rows.data(), tokens.data(), positions.data(), ends.data(), first_end.data(), kept.data(), B, B, settings.data()};
    std::fill(kept.begin(), kept.end(), -7);
  }

  Walked run(Team& team) { return team.run(list.data(), static_cast<int64_t>(list.size()), &feed); }
};

void test_steps() {
  Chain chain;
  std::vector<i32> free;
  const Isa* isa = nullptr;
  for (Crew& crew : crews()) {
    chain.start(Chain::kSteps);
    const Walked walked = chain.run(*crew.team);
    check(walked.steps == Chain::kSteps && walked.rows == 4, where("all steps are taken", crew));
    const std::vector<i32> kept = chain.kept;
    if (crew.isa != isa) free = kept, isa = crew.isa;
    check(kept == free, where("tokens of several steps are the same", crew));
    check(chain.positions[1] == 10 + Chain::kSteps - 1, where("positions are fed back", crew));

    chain.start(1);
    std::vector<i32> singly;
    for (int64_t step = 0; step < Chain::kSteps; ++step) {
      check(chain.run(*crew.team).steps == 1, where("one step is one step", crew));
      singly.insert(singly.end(), chain.drawn.begin(), chain.drawn.end());
      feed_back(chain.feed);
    }
    check(singly == free, where("several steps equal single ones", crew));

    chain.start(Chain::kSteps);
    crew.team->interrupt();
    check(chain.run(*crew.team).steps == 1, where("an interrupt leaves one step", crew));
    check(std::equal(free.begin(), free.begin() + Chain::B, chain.kept.begin()), where("and its tokens", crew));
    chain.start(Chain::kSteps);
    check(chain.run(*crew.team).steps == Chain::kSteps, where("an interrupt is for one run", crew));

    const i32 end = free[5 * Chain::B + 2];  // drawn by row 2 in the sixth step, or earlier
    chain.ends = {99, end}, chain.first_end = {0, 1, 1, 2};
    chain.start(Chain::kSteps);
    int64_t stop = 0;
    while (free[stop * Chain::B + 2] != end) ++stop;
    check(chain.run(*crew.team).steps == stop + 1, where("an end ends the run", crew));
    chain.ends.clear(), chain.first_end.assign(Chain::B + 1, 0);

    chain.start(Chain::kSteps);
    Row bad = chain.list[1];
    auto op = operands_of<LinearAdd>(bad);
    std::vector<float> nan(Chain::B * Chain::D, NAN);
    op.residual = nan.data();
    std::memcpy(chain.list[1].operands, &op, sizeof op);
    check(chain.run(*crew.team).steps == 1 && chain.kept[0] == -1, where("what is no number ends the run", crew));
    chain.list[1] = bad;
  }
}

void test_gates() {
  const int64_t T = 24, N = 500;
  const std::vector<float> x = random_floats(T * N);
  std::vector<float> first(T * N), second(T * N);
  for (const Crew& crew : crews())
    for (const int32_t value : {1, 2})
      for (const int delay_us : {0, 2000}) {
        std::fill(second.begin(), second.end(), 0.0f);
        std::vector<float> late(T * N);  // like weights, written by the thread that opens the gate
        int32_t gate = 0;
        const std::vector<Row> rows = {
            row_of(Opcode::add, Add{x.data(), x.data(), first.data(), T, N}),
            row_of(Opcode::add, Add{first.data(), late.data(), second.data(), T, N}, &gate),
            row_of(Opcode::mul, Mul{second.data(), x.data(), first.data(), T, N}),
        };
        std::thread opener([&] {
          std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
          late = x;
          signal_gate(&gate, value);
        });
        const Walked walked = crew.team->run(rows.data(), 3);
        opener.join();
        check(walked.rows == (value == 1 ? 3 : 1), where("a gate is awaited, a failed one stops", crew));
        check((second[7] == 3 * x[7]) == (value == 1), where("nothing behind a failed gate is done", crew));
      }
}

void test_an_interrupt_from_outside(Team& team) {
  Chain chain;
  std::vector<i32> many(Chain::B * 100'000);
  chain.start(100'000);
  chain.feed.kept = many.data();
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    team.interrupt();
  });
  const Walked walked = chain.run(team);
  other.join();
  check(walked.steps >= 1 && walked.steps < 100'000, "an interrupt from another thread ends a run");
}

// A thread that ends a run must not interfere with the next one, which begins at once.
void test_runs_in_a_row() {
  const int64_t T = 128, C = 8;
  const std::vector<float> x(T * C, 1.0f), one(C, 1.0f);
  std::vector<float> y(T * C);
  const auto* weight = reinterpret_cast<bytes*>(one.data());
  const Row row = row_of(Opcode::rms_norm, RmsNorm{x.data(), weight, static_cast<integer>(DType::f32), y.data(), T, 1, C, 0.0, 0.0, 0, 0});
  for (const int threads : {2, 4, 8}) {
    Team team(threads, compiled_isas()[0], 0);
    bool right = true;
    for (int i = 0; i < 3000; ++i) {
      std::fill(y.begin(), y.end(), 0.0f);
      right = team.run(&row, 1).rows == 1 && y == x && right;
    }
    check(right, "runs in a row are all done with " + std::to_string(threads) + " threads");
  }
}

void test_start_and_stop() {
  const std::vector<float> x = random_floats(64 * 300);
  std::vector<float> y(64 * 300);
  const Row row = row_of(Opcode::add, Add{x.data(), x.data(), y.data(), 64, 300});
  for (int round = 0; round < 20; ++round)
    for (const int threads : {1, 2, 4, 8}) {
      Team team(threads, compiled_isas()[0], 0);
      for (int i = 0; i < round % 4; ++i) {
        y[299] = 0;
        team.run(&row, 1);
        check(y[299] == 2 * x[299], "a new team works");
        if (i == 1) std::this_thread::sleep_for(std::chrono::microseconds(500));  // long enough to fall asleep
      }
    }
}

// A second caller is refused while a list runs; otherwise it sees everything that the first one wrote.
void test_callers_in_turns() {
  const int64_t T = 64, N = 300;
  const std::vector<float> one(T * N, 1.0f);
  std::vector<float> sums(T * N);
  Team team(2, compiled_isas()[0], 0);
  const Row row = row_of(Opcode::add, Add{sums.data(), one.data(), sums.data(), T, N});
  const auto call = [&](const Row& one, int times) {
    for (int done = 0; done < times;) {
      try {
        team.run(&one, 1);
        ++done;
      } catch (const std::logic_error&) {
        std::this_thread::yield();
      }
    }
  };
  std::thread other([&] { call(row, 200); });
  call(row, 200);
  other.join();
  check(sums == std::vector<float>(T * N, 400.0f), "callers in turns run one list at a time");
  int32_t gate = 0;
  const Row waiting = row_of(Opcode::add, Add{sums.data(), one.data(), sums.data(), T, N}, &gate);
  std::thread first([&] { call(waiting, 1); });  // it may find the team busy below
  for (bool refused = false; !refused;) {
    try {
      team.run(nullptr, 0);
      std::this_thread::yield();
    } catch (const std::logic_error&) {
      refused = true;
    }
  }
  signal_gate(&gate, 1);
  first.join();
  check(sums[T * N - 1] == 401.0f, "a caller that is refused leaves the other's list alone");
}

void test_counters() {
  Team team(3, compiled_isas()[0], 0);
  std::vector<float> x(33, 1.0f), y(33);
  const Row row = row_of(Opcode::add, Add{x.data(), x.data(), y.data(), 3, 11});
  team.run(&row, 1);
  const Counters counted = team.counters();
  check(counted.calls == 1 && counted.instructions == 1 && counted.stored_bytes == 132, "counters count");
  check(team.run(nullptr, 0).rows == 0, "a list of nothing is done at once");
}

}  // namespace

void test_teams() {
  test_steps();
  test_gates();
  for (Crew& crew : crews()) test_an_interrupt_from_outside(*crew.team);
  test_runs_in_a_row();
  test_start_and_stop();
  test_callers_in_turns();
  test_counters();
}

}  // namespace testing
