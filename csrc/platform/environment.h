// Choices by environment variables.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace asng {

// What an environment variable says, as the number of its value among those that there are; or
// `otherwise` if it is empty or not there.
template <class Choice>
Choice chosen(const char* variable, std::initializer_list<const char*> values, Choice otherwise) {
  const char* const given = std::getenv(variable);
  const std::string name = given == nullptr ? "" : given;
  if (name.empty()) return otherwise;
  std::string all;
  std::size_t number = 0;
  for (const char* value : values) {
    if (name == value) return static_cast<Choice>(number);
    ++number;
    all += (number == 1 ? "" : number == values.size() ? " or " : ", ") + std::string(value);
  }
  throw std::runtime_error(variable + (" must be " + all + ", got " + name));
}

}  // namespace asng
