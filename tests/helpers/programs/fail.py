"""Stop with the argument as the error."""

import sys

sys.exit(sys.argv[1])
