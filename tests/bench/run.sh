#!/usr/bin/env bash
# run.sh BENCH.py [arguments]: runs it with the Python environment of scripts/venv.sh, or says that there is none.
set -euo pipefail
cd "$(dirname "$0")"
python=${SKV_VENV:-$(cd ../.. && pwd)/.venv}/bin/python
if [ ! -x "$python" ]; then
  echo "skipped: no $python (scripts/venv.sh makes it)"
  exit 0
fi
export PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
exec "$python" "$@"
