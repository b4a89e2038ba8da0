"""The parser of the commands that serve a page in the browser."""

import os

from omit_hf.command_line.parser import CommandParser, expanded
from omit_hf.demo.address import Address


class PageParser(CommandParser):
    """A parser with the options of an address, and what the page shows: an argument, or a variable of the environment.

    Args:
        name: of the argument.
        expected: what it may be.
        variable: what it is by default.
        options: further ones of `CommandParser`.
    """

    def __init__(self, name: str, expected: str, variable: str, **options):
        super().__init__(Address, **options)
        self.missing = f"no {name} is given; expected {expected}, as an argument or in the variable {variable}"
        self.of_page = name
        default = expanded(os.environ.get(variable))
        told = f"{expected[0].upper()}{expected[1:]}; by default the variable {variable}."
        self.add_argument(name, nargs="?", default=default, help=told)

    def parse_args(self, args=None, namespace=None):
        found = super().parse_args(args, namespace)
        if not getattr(found, self.of_page):
            self.error(self.missing)
        return found


def address_of(arguments) -> Address:
    return Address(arguments.host, arguments.port, arguments.share)
