"""The recipes that come with the package, which has them as `omit_hf.recipes`: a file each, known by its name."""
