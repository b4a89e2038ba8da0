"""Answer the request in stdin with the handler of the folder that is the argument, as if omit_hf were not installed."""

import importlib.util
import json
import sys
from pathlib import Path

sys.modules["omit_hf"] = None
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("handler", Path(folder) / "handler.py")
module = importlib.util.module_from_spec(spec)
sys.modules["handler"] = module
spec.loader.exec_module(module)
print(json.dumps(module.EndpointHandler(folder)(json.load(sys.stdin))))
