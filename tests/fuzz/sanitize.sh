#!/usr/bin/env bash
# Build the compiled part with sanitizers and run it on good and on damaged input; any finding fails.
#
#     tests/fuzz/sanitize.sh [address]   out of bounds, use after free, undefined behaviour: ops, executor, 20,000 files
#     tests/fuzz/sanitize.sh thread      data races: the executor's tests on two threads
#
# Everything is made under build/sanitize-*, in a virtual environment of its own: the working tree's extension stays as
# it is. PYTHON is the interpreter to make it with; CASES the number of damaged files; SEED what they follow from.
set -euo pipefail
cd "$(dirname "$0")/../.."
kind=${1:-address}
build=$PWD/build/sanitize-$kind
python=$build/venv/bin/python

install() {
  [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$build/venv"
  # The tools that build are in the environment too: one that pip makes anew each time would compile all anew.
  "$python" -m pip install --quiet --disable-pip-version-check pytest safetensors scikit-build-core nanobind cmake ninja
  PATH=$build/venv/bin:$PATH "$python" -m pip install --quiet --disable-pip-version-check --no-build-isolation \
    --config-settings=build-dir="$build/objects" --config-settings=cmake.define.PUNA_SANITIZE="$kind" \
    --config-settings=install.strip=false .
}

# The sanitizer's runtime must be the first library of the process, and libstdc++ must be there for it to see `throw`.
# Python's own allocator would hide its objects' borders; leaks at its exit are its own; a refused allocation is an error
# for the caller to handle.
sanitized() {
  local runtime=$1 library fixed=()
  library=$("${CXX:-c++}" -print-file-name="lib${runtime}san.so"):$("${CXX:-c++}" -print-file-name=libstdc++.so)
  shift
  # Addresses that the system draws at random may lie where the thread sanitizer wants its own tables.
  if [ "$runtime" = t ] && setarch -R true 2>/dev/null; then fixed=(setarch -R); fi
  "${fixed[@]}" env -u PYTHONPATH LD_PRELOAD="$library" PYTHONMALLOC=malloc OPENBLAS_NUM_THREADS=1 \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 \
    "$python" -P "$@"
}

# What a sanitizer says as it ends the process would be lost in pytest's capture of file descriptors.
run_tests() { sanitized "$1" -m pytest -p no:cacheprovider --capture=sys --durations=3 "${@:2}"; }

case $kind in
  address)
    install
    run_tests a tests/ops/test_native_ops.py tests/ops/test_native_llama4_ops.py tests/ops/test_image_ops.py tests/ops/test_hadamard.py tests/ops/test_native_contracts.py \
      tests/runtime/test_local_blocks.py tests/runtime/test_native_blocks.py tests/llm/test_adapters.py \
      tests/weights/quantize/test_encode.py tests/runtime/test_native_executor.py
    sanitized a tests/fuzz/fuzz_gguf.py --n "${CASES:-20000}" --seed "${SEED:-0}" --keep "$build/findings"
    ;;
  thread)
    install
    run_tests t tests/runtime/test_native_executor.py
    ;;
  *)
    echo "sanitize.sh takes address or thread, got '$kind'" >&2
    exit 2
    ;;
esac
