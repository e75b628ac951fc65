// The type of CUDA streams, for code that has nothing else of CUDA: the launchers' declarations and
// the operators that call them are compiled without the toolkit's headers.
#pragma once

struct CUstream_st;

namespace asng::cuda {

using CudaStream = CUstream_st*;

}  // namespace asng::cuda
