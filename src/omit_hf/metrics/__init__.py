"""Modules for the `evaluate` library: `evaluate.load(IMAGE_TEXT_RETRIEVAL)`."""

from pathlib import Path

IMAGE_TEXT_RETRIEVAL = str(Path(__file__).parent / "image_text_retrieval")
