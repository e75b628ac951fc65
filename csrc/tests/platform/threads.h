#pragma once

namespace asng::test {

// How many threads run_tasks uses in these tests.
extern int thread_count;

}  // namespace asng::test
