// A stream of CUDA, for code that is compiled without the toolkit's headers.
#pragma once

struct CUstream_st;

namespace asng::cuda {

using CudaStream = CUstream_st*;

}  // namespace asng::cuda
