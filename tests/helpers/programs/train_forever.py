"""Takes the arguments of train.py; starts a child, tells its process id in a file beside the output, and waits."""

import subprocess
import sys
from pathlib import Path

child = subprocess.Popen([sys.executable, str(Path(__file__).with_name("sleep.py"))])
Path(sys.argv[sys.argv.index("--output_dir") + 1] + ".pid").write_text(f"{child.pid} ")
child.wait()
