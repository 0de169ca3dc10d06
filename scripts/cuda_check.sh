#!/usr/bin/env bash
# Builds, tests and times the CUDA backend on a machine with a GPU, in at most 9 minutes, and prints a summary:
#
#     scripts/cuda_check.sh [FOLDER [MODEL.gguf]]      FOLDER: where to build and to leave logs, default build/cuda-check
#
#   build      the plugin for this GPU alone, the gate and the benchmark
#   gate       every operation on the device against the scalar kernels (tests/backend/gate_cuda.c)
#   model      MODEL.gguf, placed in five ways, against the processor alone: logits, memory, speed
#              (tests/backend/device_model.c). The demo model will do, made before and elsewhere by
#              pyflash convert "$(python -m pyflash --demo-checkpoint)" demo.gguf
#   memcheck, racecheck, synccheck, initcheck    the gate under compute-sanitizer, as long as time is left
#   bench      the operations of decoding against the measured copy bandwidth (csrc/tools/cuda/bench_ops.cu)
#
# Needs nvcc, a C and a C++ compiler, cmake, ninja or make, and python3; no network. Exit status 1 when something
# failed, 77 without a GPU. A step that ran out of time says so, and is no pass.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$root/build/cuda-check}
limit=520 # seconds, of all steps together
started=$SECONDS
summary=()
failed=0
mkdir -p "$work"

left() { echo $((limit - (SECONDS - started))); }

# step NAME SECONDS COMMAND...: runs it with its output in NAME.log and in a line of the summary
step() {
    local name=$1 most=$2 rc begin=$SECONDS
    shift 2
    [ "$most" -le "$(left)" ] || most=$(left)
    if [ "$most" -lt 5 ]; then
        summary+=("$(printf '%-10s NOT RUN  no time was left' "$name")")
        return 1
    fi
    timeout -k 5 "$most" "$@" >"$work/$name.log" 2>&1
    rc=$?
    local line
    line=$(printf '%-10s %%s  %4d s' "$name" $((SECONDS - begin)))
    case $rc in
        0) summary+=("$(printf "$line" 'passed ')") ;;
        124 | 137) summary+=("$(printf "$line" 'CUT OFF')") ;;
        *) summary+=("$(printf "$line" 'FAILED ')"); failed=1 ;;
    esac
    [ $rc -eq 0 ] || tail -n 25 "$work/$name.log"
    return $rc
}

finish() {
    printf '\n== summary\n'
    printf '%s\n' "${summary[@]}"
    exit "$failed"
}

toolkit=/usr/local/cuda/bin
nvcc=$(command -v nvcc || ls $toolkit/nvcc 2>/dev/null) || { echo "no nvcc: install the CUDA toolkit"; exit 77; }
query=(--query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader)
card=$(nvidia-smi "${query[@]}" 2>/dev/null | head -n 1)
[ -n "$card" ] || { echo "no GPU, or no driver: nvidia-smi shows none"; exit 77; }
echo "$card; $("$nvcc" --version | tail -n 2 | head -n 1)"
capability=$(python3 -c 'import sys; print(sys.argv[1].split(",")[1].strip().replace(".", ""))' "$card")
[ "$capability" = 90 ] && capability=90a
generator=(-G "Unix Makefiles")
command -v ninja >/dev/null && generator=(-G Ninja)

build() {
    cmake -S "$root" -B "$work/build" "${generator[@]}" -DPYFLASH_CUDA=ON -DCMAKE_CUDA_COMPILER="$nvcc" \
        -DCMAKE_CUDA_ARCHITECTURES="$capability-real" &&
        cmake --build "$work/build" -j "$(nproc)" --target pyflash pyflash_cuda gate_cuda bench_cuda device_model
}
export -f build
export root work nvcc capability
generator_line="${generator[*]@Q}"
step build 240 bash -c "generator=($generator_line); build" || finish

gate=("$work/build/gate_cuda" "$work/build/libpyflash_cuda.so")
step gate 120 "${gate[@]}"
cat "$work/gate.log"
step bench 90 "$work/build/bench_cuda" && cat "$work/bench.log"

if [ -n "${2:-}" ]; then
    step model 120 "$work/build/device_model" "$2"
    cat "$work/model.log"
else
    summary+=("model      NOT RUN  no MODEL.gguf was given")
fi

sanitizer=$(command -v compute-sanitizer || ls "$(dirname "$nvcc")"/compute-sanitizer $toolkit/compute-sanitizer 2>/dev/null | head -n 1)
if [ -z "$sanitizer" ]; then
    summary+=("sanitizer  NOT RUN  compute-sanitizer is not installed")
else
    for tool in memcheck racecheck synccheck initcheck; do
        step "$tool" 200 "$sanitizer" --tool "$tool" --error-exitcode 1 "${gate[@]}" --quick
    done
fi
finish
