#!/usr/bin/env bash
# clang-tidy with .clang-tidy, warnings are errors. --changed: files that differ from SKV_BASE (a commit), and
# everything where SKV_BASE is not given or unknown. --all: everything. Needs the release build's
# compile_commands.json.
set -euo pipefail
cd "$(dirname "$0")/.."
list=$(git ls-files '*.cc' | grep -v '^tests/')
if [ "${1:---changed}" = --changed ] && [ -n "${SKV_BASE:-}" ] && git cat-file -e "$SKV_BASE^{commit}" 2>/dev/null; then
  list=$(git diff --name-only --diff-filter=d "$SKV_BASE" -- '*.cc' | grep -v '^tests/' || true)
fi
[ -n "$list" ] || { echo "clang-tidy: nothing changed"; exit 0; }
echo "clang-tidy: $(wc -l <<<"$list") files"
# gcc's own warning flags are unknown to clang; the database is otherwise the release build's.
xargs -P "$(nproc)" -n 1 clang-tidy --quiet -p build/release \
  --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-unused-command-line-argument \
  <<<"$list" 2> >(grep -v 'warnings generated\|Suppressed\|Use -header-filter' >&2)
