#!/usr/bin/env bash
# run.sh [-v] MODULE...: runs one unittest module with the Python environment of the engine.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
python=${SKV_VENV:-$root/.venv}/bin/python
if [ ! -x "$python" ]; then
  echo "skipped: no $python (scripts/venv.sh makes it)"
  exit 0
fi
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$root/client/python OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
exec "$python" -m unittest "$@"
