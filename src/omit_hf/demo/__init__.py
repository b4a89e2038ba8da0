"""The pages in the browser, of a model and of a library, and what they share; they need the extra `demo`."""

from omit_hf.demo.words import button, data_url, message, picture_with_cells, sentence_block

__all__ = ["button", "data_url", "message", "picture_with_cells", "sentence_block"]
