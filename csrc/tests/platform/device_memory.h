#pragma once

#include <cstddef>
#include <cstring>
#include <new>

namespace asng::test {

// Memory as a device's allocator gives it: aligned, and full of what was there before. Its bounds
// are those of the request, for AddressSanitizer.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) : data_(::operator new(bytes + 1, std::align_val_t{256})) {
    std::memset(data_, 0xff, bytes + 1);
  }
  ~DeviceMemory() { ::operator delete(data_, std::align_val_t{256}); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void* get() const { return data_; }

 private:
  void* data_;
};

}  // namespace asng::test
