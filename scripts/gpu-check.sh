#!/usr/bin/env bash
# Builds, tests and measures skvd's CUDA parts.
#
#   scripts/gpu-check.sh             build the bundle where a toolchain is, then run it if a GPU answers
#   scripts/gpu-check.sh --prepare   only build the bundle: build/gpu-check, self-contained (programs for sm_90 and
#                                    the shared libraries that they name, glibc left out). Take it to a GPU
#                                    machine that has no toolchain and none of our packages
#   scripts/gpu-check.sh --run [OUT] only run the bundle; results go to the terminal and, as JSON, to OUT
#
# The figures belong into docs/gpu-results.md with date, commit and driver.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=build/gpu-check
programs=(cuda_ranking_test cuda_bench)

prepare() {
  command -v nvcc >/dev/null || { echo "nvcc not found: install the CUDA toolkit (13 or later) or bring $bundle"; exit 1; }
  scripts/install-deps.sh
  cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CUDA_ARCHITECTURES=90-real >/dev/null
  cmake --build build/gpu --target "${programs[@]}"
  rm -rf "$bundle"
  mkdir -p "$bundle/bin" "$bundle/lib"
  for program in "${programs[@]}"; do
    strip -g -o "$bundle/bin/$program" "build/gpu/bin/$program"
    ldd "build/gpu/bin/$program" | awk '$3 ~ /^\// {print $3}'
  done | grep -vE '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*)\.so' | sort -u | xargs -r cp -Lt "$bundle/lib"
  git rev-parse HEAD >"$bundle/commit"
  echo "bundle: $bundle, $(du -sh "$bundle" | cut -f1)"
}

run() {
  local out=${1:-}
  [ -d "$bundle/bin" ] || { echo "no $bundle: run scripts/gpu-check.sh --prepare where nvcc is"; exit 1; }
  echo "commit $(cat "$bundle/commit"), $(date -u +%Y-%m-%d)"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  export LD_LIBRARY_PATH="$PWD/$bundle/lib"
  local failed=0
  "$bundle/bin/cuda_ranking_test" --gtest_brief=1 ${out:+--gtest_output=json:"$out/cuda_ranking_test.json"} || failed=1
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
      echo "== compute-sanitizer --tool $tool"
      compute-sanitizer --tool "$tool" --error-exitcode 1 "$bundle/bin/cuda_ranking_test" --gtest_brief=1 \
        --gtest_filter='*TiesGoByIndex*:*QueriesThatAreNotFinite*:*Gather*:*Difference*' || failed=1
    done
  fi
  "$bundle/bin/cuda_bench" ${out:+--json "$out/cuda_bench.json"} || failed=1
  return "$failed"
}

case "${1:-}" in
  --prepare) prepare ;;
  --run) run "${2:-}" ;;
  "")
    [ -d "$bundle/bin" ] && ! command -v nvcc >/dev/null || prepare
    if nvidia-smi >/dev/null 2>&1; then
      run
    else
      echo "no GPU answers here: copy this folder with $bundle to a GPU machine, then scripts/gpu-check.sh --run"
    fi
    ;;
  *) sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//'; exit 2 ;;
esac
