"""Print what makes a shell complete `omit-hf`: its commands, their options and values, and the names of recipes.

    omit-hf completion bash > ~/.local/share/bash-completion/completions/omit-hf
    omit-hf completion zsh > ~/.omit-hf.zsh && echo "source ~/.omit-hf.zsh" >> ~/.zshrc

The script holds all that it completes, so that a key press starts nothing; print it again after an upgrade.
"""

import shlex
from collections.abc import Sequence

from omit_hf.command_line.parser import CommandParser
from omit_hf.comparison import is_comparison
from omit_hf.training import own_recipes
from omit_hf_command import COMMANDS, module_of

SHELLS = ("bash", "zsh")
OF_RECIPES = ("train", "compare", "recipes")  # commands that take one by its name
# Of zsh, which reads the functions of bash.
ZSH = """\
whence compdef > /dev/null || { autoload -U compinit && compinit; }
autoload -U bashcompinit && bashcompinit
"""
SCRIPT = """\
_omit_hf() {{
  local words
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={commands}
  else
    case "${{COMP_WORDS[1]}} $3" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$2"))
}}
complete -o bashdefault -o default -F _omit_hf omit-hf
"""  # where no word fits, the names of files


def build_parser(prog: str | None = None) -> CommandParser:
    parser = CommandParser(prog=prog, description=__doc__)
    parser.add_argument("shell", choices=SHELLS, help="Which shell.")
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    shell = build_parser(prog).parse_args(given).shell
    cases = [case for command in COMMANDS for case in cases_of(command)]
    script = SCRIPT.format(commands=shlex.quote(" ".join(COMMANDS)), cases="\n".join(cases))
    print((ZSH if shell == "zsh" else "") + script, end="")


def cases_of(command: str) -> list[str]:
    """What may follow in a command: the values of an option that has a list of them; else names and options.

    The first case that fits counts, so that a command's own comes last.
    """
    cases, words = [], names_for(command)
    for action in module_of(command).build_parser()._actions:
        options = [each for each in action.option_strings if each.startswith("--")]
        values = list(map(str, action.choices or ()))
        if values and options:
            cases += [case(f"{command} {each}", values) for each in options]
        words += options[:1] or values  # of --batch_size and --batch-size the first
    return [*cases, case(f"{command} ", words, "*")]


def names_for(command: str) -> list[str]:
    """The recipes that a command takes by name."""
    own = own_recipes() if command in OF_RECIPES else ()
    return [name for name in own if command != "train" or not is_comparison(name)]


def case(before: str, words: Sequence[str], rest: str = "") -> str:
    return f"      {shlex.quote(before)}{rest}) words={shlex.quote(' '.join(words))} ;;"
