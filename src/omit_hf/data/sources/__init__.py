"""The loaders, one a file: from a source of images and captions to the schema of `omit_hf.data`."""
