# What this project needs beyond CMake's own support of CUDA; CMake 3.18 and newer will do.

# The virtual architectures that nvcc has, as numbers: 80 for compute_80.
function(asng_cuda_architectures_of nvcc out)
  execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE listed
                  RESULT_VARIABLE failed ERROR_VARIABLE problem)
  if(failed)
    message(FATAL_ERROR "${nvcc} --list-gpu-arch failed (CUDA 11.2 or newer is needed): ${problem}")
  endif()
  string(REGEX MATCHALL "compute_[0-9]+" listed "${listed}")
  string(REPLACE "compute_" "" listed "${listed}")
  set(${out} ${listed} PARENT_SCOPE)
endfunction()

# Makes CUDA C++20 available. Machine code for Ampere, Ada, Hopper and Blackwell as far as the
# toolkit has them, and PTX of the newest of these, unless CMAKE_CUDA_ARCHITECTURES says otherwise.
macro(asng_enable_cuda)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    if(CMAKE_CUDA_COMPILER)
      set(asng_nvcc ${CMAKE_CUDA_COMPILER})
    else()
      find_program(asng_nvcc nvcc HINTS $ENV{CUDACXX} ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
                   PATH_SUFFIXES bin REQUIRED)
      set(CMAKE_CUDA_COMPILER ${asng_nvcc})
    endif()
    asng_cuda_architectures_of(${asng_nvcc} asng_known)
    set(asng_wanted "")
    foreach(architecture 80 86 89 90 100 120)
      if(architecture IN_LIST asng_known)
        list(APPEND asng_wanted ${architecture})
      endif()
    endforeach()
    list(POP_BACK asng_wanted asng_newest)
    list(TRANSFORM asng_wanted APPEND "-real")
    set(CMAKE_CUDA_ARCHITECTURES ${asng_wanted} ${asng_newest})
  endif()
  message(STATUS "CUDA architectures: ${CMAKE_CUDA_ARCHITECTURES}")
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  # CMake before 3.25.2 does not know that nvcc has C++20 (since 12.0).
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
endmacro()
