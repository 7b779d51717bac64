#!/usr/bin/env bash
# Builds and tests skvd. On a fresh Debian 12 machine it installs what it needs first; the second time
# it starts at once.
#
#   scripts/test.sh          release: every test. asan and tsan: what is labelled unit, conformance, sim,
#                            golden, fuzz or hostile. clang-format; clang-tidy on what changed since
#                            SKV_BASE (all files where there is none), whose findings are shown.
#   scripts/test.sh --full   all tests in all three builds, clang-tidy on all files, findings are failures
#   scripts/test.sh --quick  release build and its tests only
set -euo pipefail
cd "$(dirname "$0")/.."

mode=default
case "${1:-}" in
  "") ;;
  --full | --quick) mode=${1#--} ;;
  *) sed -n '2,11p' "$0" | sed 's/^# \{0,1\}//'; exit 2 ;;
esac

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

say "system packages"
scripts/install-deps.sh
say "Python environment of the real model"
scripts/venv.sh

if [ "$mode" != quick ]; then
  say "clang-format"
  git ls-files -z '*.h' '*.cc' '*.c' '*.cu' '*.cuh' | xargs -0 -r clang-format --dry-run --Werror
fi

# build_and_test PRESET [ctest arguments]
build_and_test() {
  local preset=$1
  shift
  say "$preset: configure and build"
  cmake --preset "$preset" >"$results/$preset.configure" 2>&1 || { cat "$results/$preset.configure"; exit 1; }
  grep -E 'skvd:' "$results/$preset.configure" || true
  cmake --build --preset "$preset"
  say "$preset: test"
  ctest --preset "$preset" "$@" --output-junit "$results/$preset.xml"
}

parallel=(--parallel "$(nproc)")
# Where nobody watches, a test that fails is run once more, and ctest's log shows both.
[ "${CI:-}" != true ] || parallel+=(--repeat until-pass:2)
if [ "$mode" = full ]; then
  # The presets of the sanitizers select labels; --full runs their trees without that filter.
  build_and_test release "${parallel[@]}"
  for preset in asan tsan; do
    say "$preset: configure, build, test (all)"
    cmake --preset "$preset" >/dev/null
    cmake --build --preset "$preset"
    ctest --test-dir "build/$preset" --output-on-failure --no-tests=error --timeout 600 "${parallel[@]}" \
      --output-junit "$results/$preset.xml"
  done
else
  build_and_test release "${parallel[@]}"
  if [ "$mode" = default ]; then
    build_and_test asan "${parallel[@]}"
    build_and_test tsan "${parallel[@]}"
  fi
fi

if [ "$mode" = full ]; then
  say "clang-tidy"
  scripts/lint.sh --all
elif [ "$mode" = default ]; then
  say "clang-tidy"
  scripts/lint.sh --changed || echo "clang-tidy: findings, see above (scripts/test.sh --full fails on them)"
fi

say "done"
if [ -f build/release/skvd.cuda.txt ]; then
  echo "CUDA: $(cat build/release/skvd.cuda.txt)"
else
  echo "CUDA: nvcc not found, 0 .cu files are compiled (a skip)"
fi
python3 scripts/count_tests.py "$results"/*.xml
