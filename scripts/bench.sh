#!/usr/bin/env bash
# Runs the benchmarks of tests/bench from a release build, each figure beside its limit in the same run, and
# prints one table.
#
#   scripts/bench.sh [--quick] [--json FILE] [NAME ...]      NAME: rank, prefetch, put, nvme, directory, step, decode ...
set -euo pipefail
cd "$(dirname "$0")/.."
json= quick=() names=()
while [ $# -gt 0 ]; do
  case "$1" in
    --json) json=$2; shift ;;
    --quick) quick=(--quick) ;;
    -*) sed -n '2,6p' "$0" | sed 's/^# \{0,1\}//'; exit 2 ;;
    *) names+=("$1") ;;
  esac
  shift
done

scripts/install-deps.sh
scripts/venv.sh
cmake --preset release >/dev/null
cmake --build --preset release
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT

# Every program of tests/bench named bench_*, every module named bench_*.py.
for bench in build/release/bin/bench_* tests/bench/bench_*.py; do
  [ -f "$bench" ] || continue
  name=$(basename "${bench%.py}"); name=${name#bench_}
  if [ ${#names[@]} -gt 0 ] && [[ " ${names[*]} " != *" $name "* ]]; then continue; fi
  echo "== $name"
  run=("$bench")
  [ "$bench" = "${bench%.py}" ] || run=(tests/bench/run.sh "$PWD/$bench")
  "${run[@]}" "${quick[@]}" --json "$parts/$name.json"
done
[ -z "$json" ] || python3 -c '
import json, sys
print(json.dumps([figure for path in sys.argv[2:] for figure in json.load(open(path))], indent=1), file=open(sys.argv[1], "w"))
' "$json" "$parts"/*.json
