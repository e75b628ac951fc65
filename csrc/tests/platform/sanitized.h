// Whether a sanitizer looks on. Everything takes several times as long then, so tests leave out
// what is another order or other numbers for the same accesses.
#pragma once

#if defined(ASNG_SANITIZED)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
