#!/usr/bin/env bash
# Measures omit-hf on an NVIDIA GPU, in at most eight minutes: gpu_report.json and gpu_report.md, in this folder or in the one
# given by --output. Whatever fails is named in the report, and the rest goes on. PYTHON names the interpreter.
set -u
python=${PYTHON:-python3}
if ! "$python" -c "import omit_hf.kernels, triton" 2>/dev/null; then
  echo "gpu_report.sh: $python has no omit-hf with Triton. Install it: pip install -e '.[triton,train]'" >&2
  exit 1
fi
exec "$python" "$(dirname "$0")/gpu_report.py" "$@"
