#include "tests/check.h"

int main() {
  for (const asng::test::Case& test : asng::test::cases()) {
    const int before = asng::test::failures;
    test.run();
    std::printf("%s %s\n", asng::test::failures == before ? "ok    " : "FAILED", test.name);
  }
  return asng::test::failures == 0 && !asng::test::cases().empty() ? 0 : 1;
}
