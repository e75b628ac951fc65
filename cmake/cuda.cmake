# What this project needs beyond CMake's own support of CUDA; CMake 3.18 and newer will do.

# Makes CUDA C++20 available, for CMAKE_CUDA_ARCHITECTURES.
macro(asng_enable_cuda)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    message(FATAL_ERROR "Set CMAKE_CUDA_ARCHITECTURES, such as \"80-real;90\"")
  endif()
  # Machine code for 9.0 may use what no other architecture has, see csrc/platform/warpgroup.h.
  # CMake 3.24 alone takes no such name.
  if(NOT CMAKE_VERSION MATCHES "^3\\.24\\.")
    string(REGEX REPLACE "(^|;)90-real($|;)" "\\190a-real\\2" CMAKE_CUDA_ARCHITECTURES
                         "${CMAKE_CUDA_ARCHITECTURES}")
    string(REGEX REPLACE "(^|;)90($|;)" "\\190a-real;90-virtual\\2" CMAKE_CUDA_ARCHITECTURES
                         "${CMAKE_CUDA_ARCHITECTURES}")
  endif()
  # Not of the whole folder: what is for the CPU would be compiled again with and without CUDA.
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "90a")
    set(ASNG_CUDA_DEFINITIONS ASNG_SM90A)
  endif()
  message(STATUS "CUDA architectures: ${CMAKE_CUDA_ARCHITECTURES}")
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  # Two architectures of a file at a time: separable_backward.cu takes longer than all others on a core.
  add_compile_options($<$<COMPILE_LANGUAGE:CUDA>:--threads=2>)
  # CMake before 3.25.2 does not know that nvcc has C++20 (since 12.0).
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
endmacro()
