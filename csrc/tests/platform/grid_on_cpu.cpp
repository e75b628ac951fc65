// The grid that runs on the CPU, on kernels whose results are known.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/platform/grid_samples.h"

namespace {

using namespace asng::cuda;
using asng::cuda_on_cpu::Backward;

// What a launch throws; empty if nothing.
template <class F>
std::string error_of(F launch) {
  try {
    launch();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("CUDA: shared memory and barriers reduce") {
  std::vector<float> values(1000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 7);
  float expected = 0.0f;
  for (float value : values) expected += value;
  float sum = -1.0f;
  sample_reduce(values.data(), 1000, &sum, nullptr);
  CHECK(sum == expected);
  const Backward backward;
  sum = -1.0f;
  sample_reduce(values.data(), 1000, &sum, nullptr);
  CHECK(sum == expected);
}

TEST_CASE("CUDA: shuffles scan a warp") {
  std::vector<int> values(192), sums(192, -1);
  for (int i = 0; i < 192; ++i) values[i] = i * i % 11;
  sample_scan(values.data(), sums.data(), 3, nullptr);
  for (int i = 0, sum = 0; i < 192; ++i) {
    sum = i % 32 == 0 ? values[i] : sum + values[i];
    CHECK(sums[i] == sum);
  }
}

TEST_CASE("CUDA: warp operations give a warp's results") {
  std::array<double, 64> values;
  for (int i = 0; i < 64; ++i) values[i] = (i * 37 % 64) / 64.0;
  std::array<double, 128> results;
  std::array<unsigned int, 64> ballots;
  sample_warp(values.data(), results.data(), ballots.data(), nullptr);
  for (int warp = 0; warp < 2; ++warp) {
    double total = 0.0;
    unsigned int ballot = 0;
    for (int lane = 0; lane < 32; ++lane) {
      total += values[32 * warp + lane];
      ballot |= (values[32 * warp + lane] > 0.5 ? 1u : 0u) << lane;
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int i = 32 * warp + lane;
      CHECK(results[2 * i] == total);
      double most = 0.0;
      for (int j = i / 8 * 8; j < i / 8 * 8 + 8; ++j) most = std::fmax(most, values[j]);
      CHECK(results[2 * i + 1] == most);
      CHECK(ballots[i] == (lane < 16 ? 0xaaaau : ballot));
    }
  }
}

TEST_CASE("CUDA: atomics and dynamic shared memory count") {
  constexpr int kBins = 13;
  std::vector<int> values(2000), expected(kBins), counts(kBins);
  for (int i = 0; i < 2000; ++i) {
    values[i] = i * i % kBins;
    ++expected[values[i]];
  }
  unsigned int blocks_done = 0;
  int last_block = 0;
  sample_histogram(values.data(), 2000, kBins, counts.data(), &blocks_done, &last_block,
                   kBins * sizeof(int), nullptr);
  CHECK(counts == expected);
  CHECK(blocks_done == 6);
  CHECK(last_block == 1);
}

TEST_CASE("CUDA: divergence is an error that says where") {
  std::array<int, 64> out{};
  const auto diverge = [&](Divergence how) {
    return error_of([&] { sample_diverge(how, out.data(), nullptr); });
  };
  CHECK(diverge(Divergence::kNone).empty());
  CHECK(out[63] == 1);
  const std::string exit = diverge(Divergence::kExit);
  CHECK(holds(exit, "thread (5, 0, 0) has ended"));
  CHECK(holds(exit, "__syncthreads at"));
  CHECK(holds(exit, "grid_samples.cu:"));
  const std::string other = diverge(Divergence::kOtherBarrier);
  CHECK(holds(other, "thread (0, 0, 0) waits"));
  CHECK(holds(other, "thread (40, 0, 0) waits"));
  CHECK(holds(diverge(Divergence::kShuffle), "thread (33, 0, 0) has ended"));
  CHECK(holds(diverge(Divergence::kOutsideMask), "reads lane 9"));
  CHECK(holds(diverge(Divergence::kBarrierAgainstShuffle), "thread (32, 0, 0) has ended"));
  // The next launch is none the worse for it.
  CHECK(diverge(Divergence::kNone).empty());
}

TEST_CASE("CUDA: a missing barrier shows in the order of threads") {
  std::array<int, 64> forward{}, backward{};
  sample_race(forward.data(), nullptr);
  const Backward order;
  sample_race(backward.data(), nullptr);
  CHECK(forward != backward);
}

TEST_CASE("CUDA: co-resident blocks can wait for each other") {
  for (bool backwards : {false, true}) {
    std::optional<Backward> order;
    if (backwards) order.emplace();
    std::array<int, 5> parts{}, sums{};
    unsigned long long arrivals = 0;
    sample_together(parts.data(), sums.data(), &arrivals, -1, nullptr);
    for (int b = 0; b < 5; ++b) {
      CHECK(parts[b] == 31 * 32 / 2 + 32 * b);
      CHECK(sums[b] == 5 * 31 * 32 / 2 + 32 * 10);
    }
    arrivals = 0;
    const std::string error =
        error_of([&] { sample_together(parts.data(), sums.data(), &arrivals, 3, nullptr); });
    CHECK(holds(error, "thread (0, 0, 0) waits in a wait for other blocks"));
  }
}

TEST_CASE("CUDA: words that blocks hand over are waited for") {
  for (const bool backwards : {false, true}) {
    std::optional<Backward> order;
    if (backwards) order.emplace();
    std::array<uint4, 10> words{};
    std::array<unsigned, 5> sums{};
    sample_hand_over(words.data(), sums.data(), -1, nullptr);
    // Twice 2·(block + thread), of all blocks and two threads.
    for (const unsigned sum : sums) CHECK(sum == 2 * (2 * (2 * 10 + 5)));
    words = {};
    CHECK(holds(error_of([&] { sample_hand_over(words.data(), sums.data(), 3, nullptr); }),
                "a wait for other blocks"));
  }
}

TEST_CASE("CUDA: invalid launches are errors") {
  std::array<float4, 4> in{}, out{};
  in[3] = make_float4(1, 2, 3, 4);
  sample_wide(in.data(), out.data(), 4, 3, nullptr);
  CHECK(out[3].x == 4);
  CHECK(out[3].w == 1);
  CHECK(holds(error_of([&] { sample_wide(in.data(), out.data(), 4, 1025, nullptr); }), "1025"));
  CHECK(holds(error_of([&] { sample_wide(in.data(), out.data(), 0, 32, nullptr); }), "grid"));
  int counts[2] = {};
  unsigned int done = 0;
  int last = 0;
  CHECK(holds(
      error_of([&] { sample_histogram(counts, 0, 2, counts, &done, &last, 1 << 20, nullptr); }),
      "shared memory"));
}

TEST_CASE("CUDA: shared memory has the limits of a device") {
  std::vector<int> counts(13);
  const auto histogram = [&](std::size_t bytes) {
    unsigned int done = 0;
    int last = 0;
    return error_of(
        [&] { sample_histogram(nullptr, 0, 13, counts.data(), &done, &last, bytes, nullptr); });
  };
  CHECK(histogram(227 * 1024).empty());  // launch() opts in
  CHECK(holds(histogram(227 * 1024 + 1), "needs 232449 bytes of shared memory"));
  // Without that, 48 KiB.
  const int other = 0;
  const auto run = [&](std::size_t bytes) {
    return error_of([&] { asng::cuda_on_cpu::run(&other, 1, 32, bytes, [] {}); });
  };
  CHECK(run(48 * 1024).empty());
  CHECK(holds(run(48 * 1024 + 1), "49153 bytes of dynamic shared memory, of 49152"));
  asng::cuda_on_cpu::opt_in(&other, 50000);
  CHECK(run(50000).empty());
  CHECK(!run(50001).empty());
}

TEST_CASE("CUDA: static shared memory beside dynamic is an error") {
  std::array<int, 32> out{};
  CHECK(error_of([&] { sample_both_kinds(0, out.data(), nullptr); }).empty());
  CHECK(out[0] == 31);
  const std::string error = error_of([&] { sample_both_kinds(4, out.data(), nullptr); });
  CHECK(holds(error, "static shared memory at"));
  CHECK(holds(error, "grid_samples.cu:"));
}

TEST_CASE("CUDA: what works on one space of memory gets no address of the other") {
  float4 values{};
  for (const Access how : {Access::kRead, Access::kWrite, Access::kCopy, Access::kStoreShared}) {
    for (const bool shared : {false, true}) {
      CAPTURE(static_cast<int>(how));
      CAPTURE(shared);
      const std::string error = error_of([&] { sample_access(how, shared, &values, nullptr); });
      const bool needs_shared = how == Access::kStoreShared;
      if (shared == needs_shared) {
        CHECK(error.empty());
      } else {
        CHECK(holds(error, needs_shared ? "finds other memory" : "finds shared memory"));
      }
    }
  }
}

TEST_CASE("CUDA: copies that are not waited for are not there") {
  const std::array<float4, 3> values = {float4{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}};
  const std::array<float, 4> expected = {4, 8, 12, 0};
  for (const int open : {0, 2}) {
    std::array<float4, 8> out{};
    sample_copies(values.data(), out.data(), open, nullptr);
    for (int i = 0; i < 4; ++i) {
      CAPTURE(i);
      CHECK(out[4 + i].w == expected[i]);
      // The zeros are of the first group.
      if (open == 0 || i == 0 || i == 3) {
        CHECK(out[i].w == expected[i]);
      } else {
        CHECK(std::isnan(out[i].w));
      }
    }
  }
}

TEST_CASE("CUDA: LaunchesOnly checks launches and runs nothing") {
  const asng::cuda_on_cpu::LaunchesOnly check(64 * 1024);
  const auto launch = [](std::size_t bytes) {
    return error_of(
        [&] { sample_histogram(nullptr, 9, 13, nullptr, nullptr, nullptr, bytes, nullptr); });
  };
  CHECK(launch(64 * 1024).empty());
  CHECK(holds(launch(65 * 1024), "a block of this device has 65536"));
}

TEST_CASE("CUDA: bfloat16 rounds to the nearest") {
  CHECK(__bfloat162float(__float2bfloat16(1.0f)) == 1.0f);
  CHECK(__bfloat162float(__float2bfloat16(1.0f + 0x1p-8f)) == 1.0f);  // a tie: to even
  CHECK(__bfloat162float(__float2bfloat16(1.0f + 0x3p-8f)) == 1.0f + 0x1p-6f);
  CHECK(__bfloat162float(__float2bfloat16(-3.0e38f)) < -2.9e38f);
  CHECK(std::isnan(__bfloat162float(__float2bfloat16(std::nanf("")))));
}
