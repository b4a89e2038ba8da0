"""Adds the pictures of FOLDER to a LIBRARY, compacts it, takes them away again, adds them anew and encodes everything
with model OTHER instead of MODEL; prints counts as JSON."""

import json
import os
import sys

from omit_hf.library import PictureLibrary, updating

path, folder, model, other = sys.argv[1:]
updating.COMMIT_ROWS = 2
library, options = PictureLibrary(path, model), {"batch_size": 2, "progress": False}
for _ in range(3):
    report = library.add(folder, **options)
    library.compact()
    hidden = f"{folder}-hidden"
    os.mkdir(hidden)
    for name in os.listdir(folder):
        os.rename(os.path.join(folder, name), os.path.join(hidden, name))
    removed = library.remove(f"folder = '{folder}'")
    for name in os.listdir(hidden):
        os.rename(os.path.join(hidden, name), os.path.join(folder, name))
    os.rmdir(hidden)
library.sync(folder, **options)
encoded = library.reencode(other, **options)
library.compact()
print(json.dumps({"added": report.added, "removed": removed, "encoded": encoded.added}))
