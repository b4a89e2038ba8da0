"""The loaders, one per file; they read a source of images and captions into the schema of `omit_hf.data`."""
