// The smallest test harness that reports where and what: TEST registers, CHECK and CHECK_NEAR
// count failures and go on.
#pragma once

#include <cmath>
#include <cstdio>
#include <vector>

namespace asng::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int failures = 0;

struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void fail(const char* file, int line, const char* what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what);
  ++failures;
}

}  // namespace asng::test

#define TEST(name)                                                \
  static void name();                                             \
  static const asng::test::Register register_##name(#name, name); \
  static void name()

#define CHECK(condition)                                \
  do {                                                  \
    if (!(condition)) {                                 \
      asng::test::fail(__FILE__, __LINE__, #condition); \
    }                                                   \
  } while (false)

#define CHECK_NEAR(a, b, tolerance)                                 \
  do {                                                              \
    const double left = (a);                                        \
    const double right = (b);                                       \
    if (!(std::fabs(left - right) <= (tolerance))) {                \
      asng::test::fail(__FILE__, __LINE__, #a " is not near " #b);  \
      std::fprintf(stderr, "  %.17g against %.17g\n", left, right); \
    }                                                               \
  } while (false)
