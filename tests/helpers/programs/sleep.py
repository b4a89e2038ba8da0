"""Does nothing for ten minutes."""

import time

time.sleep(600)
