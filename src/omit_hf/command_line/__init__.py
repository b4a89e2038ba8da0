"""What the commands and scripts share, and the commands of `omit-hf`, a file each."""

from omit_hf.command_line.parser import CommandParser, Text, expanded, json_object
from omit_hf.command_line.running import errors_in_one_line, run_script

__all__ = ["CommandParser", "Text", "errors_in_one_line", "expanded", "json_object", "run_script"]
