"""What the pages in the browser share, `examples/app.py` and `library_app.py`; `serving` needs the extra `demo`."""

from omit_hf.demo.words import button, data_url, message, picture_with_cells, sentence_block

__all__ = ["button", "data_url", "message", "picture_with_cells", "sentence_block"]
