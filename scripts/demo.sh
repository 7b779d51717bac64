#!/usr/bin/env bash
# A real language model decodes over a long document while skvd holds its sentences in three tiers.
# On a fresh Debian 12 machine it installs and builds what it needs first; the second time it starts
# at once. Options: scripts/demo.sh --help.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."

case " $* " in *" --help "* | *" -h "*) exec env PYTHONPATH=client/python python3 -m skv_demo --help ;; esac

scripts/install-deps.sh
scripts/venv.sh
log=build/release.log
mkdir -p build
failed() { tail -n 40 "$log" >&2; echo "the build failed; all of it is in $log" >&2; exit 1; }
if [ ! -f build/release/build.ninja ]; then
  echo "build: configuring"
  cmake --preset release >"$log" 2>&1 || failed
fi
if [ -t 1 ]; then
  cmake --build --preset release --target skvd skv
else
  echo "build: skvd and libskv"
  cmake --build --preset release --target skvd skv >"$log" 2>&1 || failed
fi

root=$PWD
cd "$here"  # so that files are named from where the command was given
exec env PYTHONPATH="$root/client/python" SKV_LIBRARY="$root/build/release/lib/libskv.so.0" \
  "$root/.venv/bin/python" -m skv_demo "$@"
