"""Serves a page for this machine alone, unless it is told otherwise, and sends nothing elsewhere."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("The page in the browser needs Gradio: pip install 'omit-hf[demo]'.") from error

from omit_hf.demo.address import Address
from omit_hf.demo.style import STYLE
from omit_hf.hub.handler import Limits

LIMITS = Limits(characters=200)  # of a sentence
MOST_WAITING = 32  # requests in the queue, a second each or less; whoever comes then reads that the page is busy


def serve(blocks: gr.Blocks, address: Address, style: str, most_waiting: int = MOST_WAITING, **options) -> gr.Blocks:
    """Serve a page until it is stopped.

    Args:
        blocks: the page.
        address: where.
        style: CSS of the page, beside that of all pages.
        most_waiting: requests in the queue.
        options: further ones of Gradio's `launch`.
    """
    blocks.queue(max_size=most_waiting)
    blocks.launch(
        server_name=address.host,
        server_port=address.port,
        share=address.share,
        max_file_size=LIMITS.image_bytes,
        state_session_capacity=100,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        theme=gr.themes.Base(
            primary_hue="indigo",
            neutral_hue="slate",
            font=["Inter", "system-ui", "sans-serif"],  # as installed; none is fetched elsewhere
            font_mono=["ui-monospace", "monospace"],
        ).set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400"),  # 4.5:1 at least
        css=STYLE + style,
        **options,
    )
    return blocks
