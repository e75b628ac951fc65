#!/usr/bin/env bash
# Builds the package, tests it and measures it on the GPU of this machine, in under six minutes and
# without a network. Needs Python with torch, numpy, pybind11, pytest and hypothesis, CMake, a C++20
# compiler and nvcc, as they are; nothing is installed, and the working tree stays as it is. Where
# pytest-xdist is there, tests run in several processes.
#
#   bash bench/gpu_check.sh [--cpu] [--package FOLDER] [OUT]
#
# OUT (default: $OUT, else a new folder) gets log.txt, the rows of each benchmark, and
# gpu_check.json: what was measured on, how each part ended, and all rows. A part that fails, or takes
# too long, does not keep the others from running, and the table comes last. The exit status is 0 if
# all of them passed.
#
#   --cpu       runs what can be run without a GPU, quickly: shows that this script works
#   --package   uses the built package in FOLDER (the one that holds asng_ext) and builds none
# PYTHON chooses the interpreter (python3), BUDGET the seconds (340; 520 with --cpu).
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
device=cuda
package=""
out=${OUT:-}
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) device=cpu ;;
    --package) package=$(cd "${2:?--package needs a folder}" && pwd) || exit 2; shift ;;
    -*) echo "usage: bash bench/gpu_check.sh [--cpu] [--package FOLDER] [OUT]" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
budget=${BUDGET:-$([ "$device" = cpu ] && echo 520 || echo 340)}
[ -n "$out" ] || out=$(mktemp -d -t gpu_check.XXXXXX)
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
scratch=$(mktemp -d)
log="$out/log.txt"
parts="$scratch/parts.tsv"
# However this ends.
report() {
  echo "in $out, after $SECONDS s"
  # Without a compiled cache beside the sources.
  "$python" -B "$root/bench/gpu_report.py" "$parts" "$out" 2>> "$log" || cat "$parts"
  rm -rf "$scratch"
}
trap report EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
: > "$log"
: > "$parts"
# Output of a part that is stopped is not lost.
export PYTHONUNBUFFERED=1

# Name and least number of seconds of each part, the most important first: what one leaves, the later
# ones may use. Nothing goes without a build, which may take all but what the others need at least.
names=(environment build tests search kernels memcheck racecheck ops optimizer inpainting mixture retrain)
least=(5 60 40 40 15 20 20 20 10 10 15 15)

# Seconds that a part may take.
limit_of() {
  local seconds=$((budget - SECONDS)) later=0 i
  for i in "${!names[@]}"; do
    if [ "$later" = 1 ]; then seconds=$((seconds - least[i])); fi
    if [ "${names[i]}" = "$1" ]; then later=1; fi
  done
  echo "$seconds"
}

# part NAME COMMAND...: runs it, logs it and notes how it ended.
part() {
  local name=$1 start=$SECONDS limit status rc
  shift
  limit=$(limit_of "$name")
  if [ "$limit" -lt 1 ]; then
    note "$name" "no time left" 0
    return 1
  fi
  printf '\n== %s (at most %s s): %s\n' "$name" "$limit" "$*" | tee -a "$log"
  timeout --kill-after=5 "$limit" "$@" > "$scratch/part.txt" 2>&1
  rc=$?
  cat "$scratch/part.txt" >> "$log"
  if [ $rc = 0 ]; then
    status=passed
  elif [ $((SECONDS - start)) -ge "$limit" ]; then
    status="stopped after $limit s"
  else
    status="failed ($rc)"
  fi
  [ $rc = 0 ] || tail -n 25 "$scratch/part.txt"
  note "$name" "$status" $((SECONDS - start))
  return $rc
}

note() {
  printf '%s\t%s\t%s\n' "$1" "$2" "$3" >> "$parts"
  printf '== %s: %s\n' "$1" "$2"
}

environment() {
  date -u
  "$python" -c 'import sys, torch; print(sys.version); print("torch", torch.__version__, torch.version.cuda)' || return 1
  [ "$device" = cpu ] && return 0
  nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv ||
    return 1
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "torch finds no CUDA device")'
}

build() {
  local options=(-S "$root" -B "$scratch/build" -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_INSTALL_PREFIX="$scratch/package/asng_ext" -DASNG_BUILD_CUDA=OFF)
  local torch pybind11 nvcc capability
  torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))') || return 1
  pybind11=$("$python" -m pybind11 --cmakedir) || { echo "pybind11 is missing"; return 1; }
  options+=(-DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$pybind11"
    -DASNG_TORCH_DIR="$torch")
  if [ "$device" = cuda ]; then
    nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
    [ -x "$nvcc" ] || { echo "nvcc is missing"; return 1; }
    # For this GPU alone: that is several times quicker.
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
    options+=(-DASNG_BUILD_CUDA=ON -DCMAKE_CUDA_COMPILER="$nvcc"
      -DCMAKE_CUDA_ARCHITECTURES="${capability:-90}-real")
  fi
  command -v ninja > /dev/null && options+=(-G Ninja)
  cmake "${options[@]}" && cmake --build "$scratch/build" --parallel "${MAX_JOBS:-$(nproc)}" &&
    cmake --install "$scratch/build"
}

# What runs uses a copy of the package, so that nothing is written into the working tree.
copy() {
  mkdir -p "$scratch/package" &&
    cp -rp "$root/python_tests" "$root/bench" "$root/pyproject.toml" "$scratch/package/" &&
    cp -rp "${package:-$root}/asng_ext" "$scratch/package/" &&
    { [ -n "$package" ] || rm -f "$scratch/package/asng_ext/"*.so; }
}

# Processes that share the GPU: each takes a core or two, and about a GiB of the card's memory.
workers() {
  local cores=$(($(nproc) / 2)) free
  free=$(nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits 2> /dev/null | head -n 1)
  free=$((${free:-4096} / 2048))
  echo $((cores < free ? (cores < 8 ? cores : 8) : (free < 8 ? free : 8)))
}

tests() {
  # Warnings of other versions of other packages are no errors here.
  local options=(-q -o filterwarnings=default -p no:cacheprovider) status=0 processes graphs
  processes=$(workers)
  if [ "$processes" -gt 1 ] && "$python" -c 'import xdist' 2> /dev/null; then
    options+=(-n "$processes")
  fi
  if [ "$device" = cuda ]; then
    FAIL_WITHOUT_CUDA=1 "$python" -m pytest "${options[@]}" -m cuda python_tests || status=1
  fi
  # The logic around graphs with this version of torch; without a GPU a part of it.
  graphs=(python_tests/training/test_cuda_graphs.py)
  [ "$device" = cpu ] || graphs+=(python_tests/engine/test_captured_{search,retrain}.py)
  "$python" -m pytest "${options[@]}" -m "not cuda" "${graphs[@]}" || status=1
  # What memcheck and racecheck look at.
  [ "$device" = cuda ] || "$python" bench/gpu_small.py --device cpu || status=1
  return $status
}

# sanitize TOOL: our kernels on small cases; each allocation its own, so that overruns are seen.
sanitize() {
  local options=(--tool "$1" --error-exitcode 9 --report-api-errors no)
  command -v compute-sanitizer > /dev/null || { echo "compute-sanitizer is missing"; return 1; }
  if compute-sanitizer --help 2>&1 | grep -q -- --kernel-regex; then
    options+=(--kernel-regex kns=asng)
  fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer "${options[@]}" "$python" bench/gpu_small.py
}

# Which kernels a search runs, and how long they take; into the log, too.
kernels() { "$python" bench/gpu_kernels.py --json "$out/kernels.json"; }

bench() {
  local options=(--device "$device" --json "$out/$1.json")
  [ "$device" = cpu ] && options+=(--quick)
  "$python" "bench/$1.py" "${options[@]}"
}

# A function of this script as a command that timeout can run.
export root python device package scratch out
for name in environment build copy workers tests sanitize kernels bench; do
  export -f "${name?}"
done
run() { local part=$1; shift; part "$part" bash -c "$*"; }

copy || { echo "the package could not be copied to $scratch"; exit 1; }
run environment environment
usable=yes
if [ -n "$package" ]; then
  note build "skipped: --package" 0
else
  run build build || usable=no
fi
cd "$scratch/package" || exit 1
export PYTHONPATH="$scratch/package"
for name in "${names[@]:2}"; do
  case $name in
    tests | kernels) command=$name ;;
    memcheck | racecheck) command="sanitize $name" ;;
    optimizer) command="bench gpu_optimizer" ;;
    search) command="bench gpu_search_step" ;;
    ops) command="bench gpu_ops" ;;
    inpainting) command="bench gpu_inpainting" ;;
    mixture) command="bench gpu_mixture" ;;
    retrain) command="bench gpu_retrain_step" ;;
  esac
  if [ $usable = no ]; then
    note $name "skipped: no build" 0
  elif [ "$device" = cpu ] && [[ $command =~ ^(sanitize|kernels) ]]; then
    note $name "skipped: --cpu" 0
  else
    run $name "$command"
  fi
done

! cut -f 2 "$parts" | grep -v -q -x -e passed -e 'skipped: --.*'
