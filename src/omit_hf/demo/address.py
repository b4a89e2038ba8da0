"""Where a page is served."""

from dataclasses import dataclass, field


@dataclass
class Address:
    host: str | None = field(
        default=None, metadata={"help": "Address to listen at, 0.0.0.0 for all; by default this machine alone."}
    )
    port: int | None = field(default=None, metadata={"help": "By default the first free one from 7860."})
    share: bool = field(default=False, metadata={"help": "Make a public link through Gradio's servers."})
