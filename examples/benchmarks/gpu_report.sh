#!/usr/bin/env bash
# Measures omit-hf on an NVIDIA GPU, in at most eight minutes: gpu_report.json and gpu_report.md, in this folder or in the one
# given by --output. Whatever fails is named in the report, and the rest goes on. PYTHON names the interpreter.
set -u
python=${PYTHON:-python3}
# Installed, and not only on the path: the report says which version it is.
if ! why=$("$python" -c "import importlib.metadata, omit_hf.kernels, triton; importlib.metadata.version('omit-hf')" 2>&1); then
  echo "gpu_report.sh: $python has no omit-hf with Triton (${why##*$'\n'}). Install it: pip install -e '.[triton,train]'" >&2
  exit 1
fi
exec "$python" "$(dirname "$0")/gpu_report.py" "$@"
